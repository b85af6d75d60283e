//! `doctor`: what this machine and this build offer.

use anyhow::Result;
use kindling_tensor_backend::{device, measure};
use serde::Serialize;

use crate::cli::Doctor;
use crate::output;

/// The findings, as `--json` prints them.
#[derive(Serialize)]
struct Findings {
    cpu: String,
    features: Vec<&'static str>,
    threads: usize,
    read_gb_s: f64,
    f32_gflop_s: f64,
    /// `null` where this processor has no integer kernel.
    int8_gop_s: Option<f64>,
    devices: Vec<&'static str>,
}

pub(crate) fn run(args: &Doctor) -> Result<()> {
    if !args.json {
        eprintln!("measuring, a few seconds …");
    }
    let found = Findings {
        cpu: cpu(),
        features: device::cpu_features(),
        threads: rayon::current_num_threads(),
        read_gb_s: measure::read_bandwidth_gb_s(),
        f32_gflop_s: measure::f32_gflop_s(),
        int8_gop_s: measure::int8_gop_s(),
        devices: device::available().into_iter().map(device::DeviceName::as_str).collect(),
    };
    if args.json {
        return output::json(&found);
    }
    let rate = |value: f64, unit: &str| format!("{value:.1} {unit}");
    output::line(output::table(
        ["", ""],
        [
            ["processor".to_string(), found.cpu],
            ["vector instructions".into(), found.features.join(" ")],
            ["threads".into(), found.threads.to_string()],
            ["reads from memory".into(), rate(found.read_gb_s, "GB/s")],
            ["f32 matrix product".into(), rate(found.f32_gflop_s, "GFLOP/s")],
            [
                "int8 matrix product".into(),
                found.int8_gop_s.map_or("no kernel for this processor".into(), |value| rate(value, "GOP/s")),
            ],
            ["devices (--device)".into(), found.devices.join(" ")],
        ],
    ))
}

/// The processor's name where the system tells it, else its architecture.
pub(super) fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = info.lines().filter(|line| line.starts_with("model name")).find_map(|line| line.split_once(':'));
    named.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}
