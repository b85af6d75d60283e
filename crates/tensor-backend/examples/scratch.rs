#![allow(missing_docs)]
use kindling_tensor_backend::linalg::*;
use std::time::Instant;
fn main() {
    for n in [2048usize, 4096] {
        let mut a = vec![0.0f64; n * n];
        for i in 0..n { for j in 0..n { a[i*n+j] = (-((i as f64 - j as f64).abs())*0.05).exp(); } a[i*n+i] += 0.01; }
        for t in [1usize, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(t).build().unwrap();
            for _ in 0..3 {
                let h = a.clone();
                let s = Instant::now();
                let u = pool.install(|| inverse_cholesky_upper(h, n).unwrap());
                let el = s.elapsed().as_secs_f64();
                let s = Instant::now();
                let l = pool.install(|| cholesky_lower(&a, n).unwrap());
                println!("n {n} threads {t}: inv_chol {el:.3}s chol(incl copy) {:.3}s {}", s.elapsed().as_secs_f64(), u[3] + l[n]);
            }
        }
        let x: Vec<f32> = (0..2048*n).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let mut out = vec![0.0; n*n];
        for _ in 0..2 { let s = Instant::now(); xtx(&x, 2048, n, &mut out).unwrap(); println!("xtx {:.3}", s.elapsed().as_secs_f64()); }
    }
}
