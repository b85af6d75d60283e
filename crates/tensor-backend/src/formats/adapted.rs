//! A weight of any format with a low-rank correction that can be trained: LoRA and DoRA.
//!
//! Sources: Hu et al., "LoRA", arXiv 2106.09685; Dettmers et al., "QLoRA", arXiv 2305.14314 (a quantised base); Liu et al.,
//! "DoRA", arXiv 2402.09353. Neither the correction nor the sum is ever formed in a forward pass, except where a pruned
//! base asks for a [masked](Adapted::masked) one.

use burn::tensor::{Device, Tensor};

use super::{Dense, FormatError, Result, Weight, times};

/// `W + s · B A`, with DoRA rescaled to learnt row norms.
#[derive(Debug, Clone)]
pub struct Adapted {
    base: Box<Weight>,
    /// `[rank, in]`.
    a: Tensor<2>,
    /// `[out, rank]`.
    b: Tensor<2>,
    /// The `s` above.
    scale: f64,
    /// With DoRA the learnt norm of every row and the squared norm of the base's, `[out]` each.
    magnitude: Option<(Tensor<1>, Tensor<1>)>,
    /// 1 where the base has a weight and 0 where it is pruned, `[in, out]`.
    mask: Option<Tensor<2>>,
}

impl Adapted {
    /// The name in files.
    pub const CODE: &str = "adapted";

    /// Adds `a` `[rank, in]` and `b` `[out, rank]` to a weight.
    pub fn new(base: Weight, a: Tensor<2>, b: Tensor<2>, scale: f64) -> Result<Self> {
        let ([rows, cols], [rank, inputs], [outputs, b_rank]) = (base.shape(), a.dims(), b.dims());
        if inputs != cols || outputs != rows || rank != b_rank {
            return Err(FormatError::Shape {
                what: "adapter of a linear layer, [rank, in] and [out, rank]",
                expected: vec![rank, cols, rows, rank],
                found: vec![rank, inputs, outputs, b_rank],
            });
        }
        Ok(Self { base: Box::new(base), a, b, scale, magnitude: None, mask: None })
    }

    /// The same with DoRA's learnt row norms; `None` begins with those of the base.
    pub fn with_magnitude(mut self, magnitude: Option<Tensor<1>>) -> Result<Self> {
        let [rows, _] = self.shape();
        let magnitude = match magnitude {
            Some(magnitude) if magnitude.dims() != [rows] => {
                let found = magnitude.dims().to_vec();
                return Err(FormatError::Shape { what: "magnitudes of a DoRA adapter", expected: vec![rows], found });
            }
            other => other,
        };
        let squares = self.base.to_dense(&self.a.device())?.square().sum_dim(1).reshape([rows]);
        let magnitude = magnitude.unwrap_or_else(|| squares.clone().sqrt());
        self.magnitude = Some((magnitude, squares));
        Ok(self)
    }

    /// The same with a correction that leaves pruned weights at zero: `M ⊙ (W + s · B A)`. The base's zeros are the mask.
    /// Such a correction is formed in every pass.
    pub fn masked(mut self) -> Result<Self> {
        let dense = self.base.to_dense(&self.a.device())?.transpose();
        self.mask = Some(dense.not_equal_scalar(0.0).float());
        Ok(self)
    }

    /// The weight without the correction.
    pub fn base(&self) -> &Weight {
        &self.base
    }

    /// The weight without the correction, to hold it in another format. Its shape and values must stay.
    pub fn base_mut(&mut self) -> &mut Weight {
        &mut self.base
    }

    /// The factor of the correction.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// `A`, `B` and the magnitudes, to train them.
    pub fn parts_mut(&mut self) -> (&mut Tensor<2>, &mut Tensor<2>, Option<&mut Tensor<1>>) {
        (&mut self.a, &mut self.b, self.magnitude.as_mut().map(|(magnitude, _)| magnitude))
    }

    /// `A`, `B` and the magnitudes.
    pub fn parts(&self) -> (&Tensor<2>, &Tensor<2>, Option<&Tensor<1>>) {
        (&self.a, &self.b, self.magnitude.as_ref().map(|(magnitude, _)| magnitude))
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.base.shape()
    }

    /// Bytes of base and correction.
    pub fn bytes(&self) -> usize {
        let [rank, inputs] = self.a.dims();
        let [outputs, _] = self.b.dims();
        let magnitudes = if self.magnitude.is_some() { 2 * outputs } else { 0 };
        self.base.bytes() + (rank * (inputs + outputs) + magnitudes) * self.a.dtype().size()
    }

    /// For example `packed 4-bit g32 + rank 8`.
    pub fn format_name(&self) -> String {
        format!("{} + rank {}", self.base.format_name(), self.a.dims()[0])
    }

    /// `M ⊙ s · B A` or `s · B A`, transposed: `[in, out]`.
    fn correction(&self) -> Tensor<2> {
        let product = self.a.clone().transpose().matmul(self.b.clone().transpose()).mul_scalar(self.scale);
        match &self.mask {
            Some(mask) => product * mask.clone(),
            None => product,
        }
    }

    /// The norms of the rows of `W + s · B A`, `[out]`, from the base's norms and a product with it.
    fn norms(&self, squares: &Tensor<1>) -> Result<Tensor<1>> {
        let ([rows, _], [rank, inputs]) = (self.shape(), self.a.dims());
        if self.mask.is_some() {
            let sum = self.base.to_dense(&self.a.device())?.transpose() + self.correction();
            return Ok(sum.square().sum_dim(0).sqrt().reshape([rows]));
        }
        // ‖w + s b A‖² = ‖w‖² + 2 s b·(A wᵀ) + s² b (A Aᵀ) bᵀ for a row w of W and b of B.
        let through = self.base.forward(self.a.clone().reshape([1, rank, inputs]))?.reshape([rank, rows]).transpose();
        let cross = (through * self.b.clone()).sum_dim(1).mul_scalar(2.0 * self.scale);
        let inner = self.a.clone().matmul(self.a.clone().transpose());
        let own = (self.b.clone().matmul(inner) * self.b.clone()).sum_dim(1).mul_scalar(self.scale * self.scale);
        Ok((squares.clone() + (cross + own).reshape([rows])).clamp_min(0.0).sqrt())
    }

    /// What every output is multiplied by, `[out]`; `None` without DoRA. The norms count as constants in a backward pass.
    fn factors(&self) -> Result<Option<Tensor<1>>> {
        let Some((magnitude, squares)) = &self.magnitude else { return Ok(None) };
        let norms = self.norms(squares)?.detach().clamp_min(f64::from(f32::MIN_POSITIVE));
        Ok(Some(magnitude.clone() / norms))
    }

    /// `x · (W + s · B A)ᵀ`: `[batch, tokens, in]` to `[batch, tokens, out]`.
    pub(super) fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let base = self.base.forward(x.clone())?;
        let correction = match &self.mask {
            Some(_) => times(x, self.correction()),
            None => {
                let low = times(x, self.a.clone().transpose());
                times(low, self.b.clone().transpose()).mul_scalar(self.scale)
            }
        };
        let y = base + correction;
        match self.factors()? {
            Some(factors) => Ok(y * factors.unsqueeze()),
            None => Ok(y),
        }
    }

    /// The tensor `[out, in]` on `device`.
    pub fn to_dense(&self, device: &Device) -> Result<Tensor<2>> {
        let [rows, _] = self.shape();
        let sum = self.base.to_dense(device)? + self.correction().to_device(device).transpose();
        match self.factors()? {
            Some(factors) => Ok(sum * factors.reshape([rows, 1]).to_device(device)),
            None => Ok(sum),
        }
    }

    /// The sum as a dense weight. Zeros of a masked base stay zeros.
    pub fn merged(&self, device: &Device) -> Result<Weight> {
        Ok(Weight::Dense(Dense::new(self.to_dense(device)?)))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    fn device() -> Device {
        Device::default()
    }

    fn base() -> Weight {
        Weight::Dense(Dense::from_host(2, 3, vec![1.0, 2.0, -1.0, 0.5, -1.0, 2.0], &device()).unwrap())
    }

    fn adapted(base: Weight) -> Adapted {
        let a = Tensor::from_data([[0.1, -0.2, 0.3]], &device());
        let b = Tensor::from_data([[0.5], [-1.0]], &device());
        Adapted::new(base, a, b, 2.0).unwrap()
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().try_to_vec().unwrap()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 2e-6), "{found:?}, expected {expected:?}");
    }

    fn x() -> Tensor<3> {
        Tensor::from_data([[[1.0, 0.5, -1.0]]], &device())
    }

    #[test]
    fn worked_numbers_of_lora() {
        let adapted = adapted(base());
        close(&values(adapted.base().forward(x()).unwrap()), &[3.0, -2.0]);
        close(&values(adapted.forward(x()).unwrap()), &[2.7, -1.4]);
        close(&values(adapted.merged(&device()).unwrap().forward(x()).unwrap()), &[2.7, -1.4]);
    }

    #[test]
    fn worked_numbers_of_dora() {
        let fresh = adapted(base()).with_magnitude(None).unwrap();
        close(&values(fresh.parts().2.unwrap().clone()), &[2.44949, 2.291288]);
        let magnitude = Tensor::from_data([2.694439, 2.062159], &device());
        let learnt = adapted(base()).with_magnitude(Some(magnitude)).unwrap();
        let squares = &learnt.magnitude.as_ref().unwrap().1;
        close(&values(learnt.norms(squares).unwrap()), &[2.222611, 1.552417]);
        close(&values(learnt.forward(x()).unwrap()), &[3.27317, -1.859695]);
        let dense = [1.333514, 2.182114, -0.8486, 0.398506, -0.797012, 1.859695];
        close(&values(learnt.to_dense(&device()).unwrap()), &dense);
        // Without a correction the base is back.
        let zero = Tensor::zeros([2, 1], &device());
        let still = Adapted::new(base(), Tensor::ones([1, 3], &device()), zero, 2.0).unwrap();
        close(&values(still.with_magnitude(None).unwrap().forward(x()).unwrap()), &[3.0, -2.0]);
    }

    #[test]
    fn a_masked_correction_fills_no_zero() {
        let pruned = Weight::Dense(Dense::from_host(2, 3, vec![1.0, 0.0, -1.0, 0.0, -1.0, 2.0], &device()).unwrap());
        let masked = adapted(pruned).masked().unwrap();
        close(&values(masked.to_dense(&device()).unwrap()), &[1.1, 0.0, -0.7, 0.0, -0.6, 1.4]);
        let through = masked.merged(&device()).unwrap().forward(x()).unwrap();
        close(&values(masked.forward(x()).unwrap()), &values(through));
    }

    #[cfg(feature = "autodiff")]
    #[test]
    fn gradients_reach_the_correction_and_not_the_base() {
        let device = device().autodiff();
        let a = Tensor::<2>::from_data([[0.1, -0.2, 0.3]], &device).require_grad();
        let b = Tensor::<2>::from_data([[0.5], [-1.0]], &device).require_grad();
        let base = Weight::Dense(Dense::from_host(2, 3, vec![1.0, 2.0, -1.0, 0.5, -1.0, 2.0], &device).unwrap());
        let adapted = Adapted::new(base, a.clone(), b.clone(), 2.0).unwrap();
        let x = Tensor::<3>::from_data([[[1.0, 0.5, -1.0]]], &device).require_grad();
        let g = Tensor::<3>::from_data([[[1.0, -2.0]]], &device);
        let grads = (adapted.forward(x.clone()).unwrap() * g).sum().backward();
        // ∂B = s gᵀ (x Aᵀ), ∂A = s (g B)ᵀ x, ∂x = g W + s (g B) A.
        close(&values(b.grad(&grads).unwrap()), &[-0.6, 1.2]);
        close(&values(a.grad(&grads).unwrap()), &[5.0, 2.5, -5.0]);
        close(&values(x.grad(&grads).unwrap()), &[0.5, 3.0, -3.5]);
    }

    #[test]
    fn shapes_are_checked() {
        let a = Tensor::<2>::zeros([1, 4], &device());
        assert!(Adapted::new(base(), a, Tensor::zeros([2, 1], &device()), 1.0).is_err());
        let magnitude = Tensor::from_data(TensorData::from([1.0f32]), &device());
        assert!(adapted(base()).with_magnitude(Some(magnitude)).is_err());
    }
}
