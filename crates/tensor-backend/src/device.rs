//! Which devices are compiled in, and the machine they run on.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
#[cfg(feature = "cube")]
use burn::tensor::DeviceType;

/// Why a device or thread pool could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No device has this name.
    #[error("unknown device `{name}`: this build has {}", list(&available()))]
    Unknown {
        /// The name that was given.
        name: String,
    },
    /// The device exists, but its feature was off when this program was built.
    #[error(
        "device `{name}` is not compiled in: this build has {}; rebuild with the feature `{name}` of \
         kindling-tensor-backend", list(&available())
    )]
    NotCompiled {
        /// The device asked for.
        name: DeviceName,
    },
    /// The device is compiled in, but this machine has none, or no driver for it.
    #[error("no device `{name}` on this machine: no such GPU, or its driver is missing; `flex` always works")]
    Absent {
        /// The device asked for.
        name: DeviceName,
    },
    /// The process-wide pool of threads exists already, or could not start.
    #[error("cannot use {threads} threads: {reason}; set the number once, before any work")]
    Threads {
        /// The number asked for.
        threads: usize,
        /// What the pool said.
        reason: String,
    },
}

/// A device by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// Burn's CPU backend.
    Flex,
    /// The second CPU backend, an oracle for tests.
    NdArray,
    /// A GPU through WebGPU.
    WebGpu,
    /// A GPU through CUDA.
    Cuda,
}

impl DeviceName {
    /// Every name, compiled in or not; the preferred one first.
    pub const ALL: [DeviceName; 4] = [DeviceName::Flex, DeviceName::NdArray, DeviceName::WebGpu, DeviceName::Cuda];

    /// The name that the command line and features use.
    pub fn as_str(self) -> &'static str {
        match self {
            DeviceName::Flex => "flex",
            DeviceName::NdArray => "ndarray",
            DeviceName::WebGpu => "webgpu",
            DeviceName::Cuda => "cuda",
        }
    }

    /// Whether this build contains the device.
    pub fn is_compiled(self) -> bool {
        match self {
            DeviceName::Flex => cfg!(feature = "flex"),
            DeviceName::NdArray => cfg!(feature = "ndarray"),
            DeviceName::WebGpu => cfg!(feature = "webgpu"),
            DeviceName::Cuda => cfg!(feature = "cuda"),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DeviceName {
    type Err = DeviceError;
    fn from_str(name: &str) -> Result<Self, DeviceError> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == name)
            .ok_or_else(|| DeviceError::Unknown { name: name.into() })
    }
}

/// The devices of this build, the preferred one first.
pub fn available() -> Vec<DeviceName> {
    DeviceName::ALL.into_iter().filter(|name| name.is_compiled()).collect()
}

/// Opens a device.
pub fn device(name: DeviceName) -> Result<Device, DeviceError> {
    match name {
        #[cfg(feature = "flex")]
        DeviceName::Flex => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[expect(deprecated, reason = "burn keeps this backend only as what we use it for: a second opinion")]
        DeviceName::NdArray => Ok(Device::ndarray()),
        // Burn's default device panics where there is none: those that are found are asked for.
        #[cfg(feature = "webgpu")]
        DeviceName::WebGpu => found(DeviceType::Wgpu, name),
        #[cfg(feature = "cuda")]
        DeviceName::Cuda => found(DeviceType::Cuda, name),
        #[cfg(not(all(feature = "flex", feature = "ndarray", feature = "webgpu", feature = "cuda")))]
        missing => Err(DeviceError::NotCompiled { name: missing }),
    }
}

/// The first device of a kind.
#[cfg(feature = "cube")]
fn found(kind: DeviceType, name: DeviceName) -> Result<Device, DeviceError> {
    Device::enumerate(kind).into_vec().into_iter().next().ok_or(DeviceError::Absent { name })
}

/// Builds the process-wide pool with `threads` threads, which host loops and the CPU devices share. The calling thread is one of
/// them, so it should be the one that goes on to compute.
///
/// An error if the pool exists: it is built by the first parallel work of the process. 0 means one thread per core.
pub fn set_threads(threads: usize) -> Result<(), DeviceError> {
    // The caller is one of the threads: handing work to others and sleeping until it is done takes longer than a small
    // product.
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread()
        .build_global()
        .map_err(|error| DeviceError::Threads { threads, reason: error.to_string() })
}

/// The vector instructions of this processor that matter here, found at run time.
pub fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! found {
            ($($name:tt),*) => { [$(($name, std::arch::is_x86_feature_detected!($name))),*] };
        }
        let known = found!(
            "sse4.2",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "avxvnni",
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512vnni",
            "avx512vbmi2",
            "avx512bf16",
            "avx512vbmi",
            "avx512vpopcntdq"
        );
        known.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! found {
            ($($name:tt),*) => { [$(($name, std::arch::is_aarch64_feature_detected!($name))),*] };
        }
        let known = found!("neon", "fp16", "dotprod", "i8mm", "bf16", "sve");
        known.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

fn list(names: &[DeviceName]) -> String {
    if names.is_empty() {
        return "none".into();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_list_what_is_there() {
        for name in DeviceName::ALL {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        let error = "abacus".parse::<DeviceName>().unwrap_err().to_string();
        assert!(error.contains("`abacus`") && error.contains(&list(&available())), "{error}");
    }

    #[test]
    fn exactly_the_compiled_devices_open() {
        for name in DeviceName::ALL {
            match device(name) {
                Ok(_) => assert!(name.is_compiled()),
                Err(DeviceError::Absent { .. }) => assert!(name.is_compiled()),
                Err(error) => assert_eq!(error, DeviceError::NotCompiled { name }),
            }
        }
        assert_eq!(available().contains(&DeviceName::Flex), cfg!(feature = "flex"));
    }

    #[test]
    fn the_pool_is_built_once() {
        rayon::join(|| (), || ());
        assert!(matches!(set_threads(1), Err(DeviceError::Threads { threads: 1, .. })));
    }
}
