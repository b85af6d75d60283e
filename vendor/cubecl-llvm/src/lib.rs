//! Every name that `cubecl-cuda` takes from CubeCL's LLVM compiler, and no compiler.
//!
//! The real crate downloads an LLVM while it is built. With CubeCL's feature `cuda-cpp`, which this workspace turns on, kernels
//! become CUDA C++ for NVRTC and the names below are only mentioned, never called. The workspace's `[patch]` puts this crate
//! in; crates that depend on Kindling from outside get the real one.

use core::fmt;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;

/// What code is made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// The processor.
    #[default]
    Cpu,
    /// NVIDIA GPUs.
    Nvptx,
}

/// A kernel in PTX.
#[derive(Debug, Clone)]
pub struct NvptxModule {
    /// The text, ended by a zero.
    pub ptx: Vec<core::ffi::c_char>,
    /// The kernel's name in it.
    pub entrypoint: String,
    /// The code that it was made from.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// How its buffers are used.
    pub io: Vec<BufferIOAttr>,
}

/// What the compiler would return.
#[derive(Clone)]
pub enum PlironArtifact {
    /// Nothing.
    Unavailable,
    /// A kernel.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("built without LLVM")
    }
}

/// What the compiler would be told.
#[derive(Debug, Clone, Default)]
pub struct PlironOptions {
    /// The processor.
    pub arch: Option<()>,
    /// The GPU.
    pub sm_arch: Option<SmArch>,
    /// The version of PTX.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether arguments are constants of the grid.
    pub grid_constants: bool,
}

/// The compiler.
#[derive(Debug, Clone, Default)]
pub struct PlironCompiler {
    /// What it makes code for.
    pub target: LlvmTarget,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        unreachable!("built without LLVM: the feature `cuda-cpp` of cubecl compiles kernels")
    }

    fn extension(&self) -> &'static str {
        "none"
    }

    fn lang_tag(&self) -> &'static str {
        "none"
    }
}

/// Names of the NVIDIA target.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        use core::fmt;

        /// A version of PTX; there is none.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct PtxVersion(());

        impl PtxVersion {
            /// The version that a driver takes.
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("none")
            }
        }
    }
}

/// Names that targets share.
pub mod shared {
    /// Features of a device that its compiler lacks.
    pub mod lowered_features {
        /// A kind of GPU.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Leaves a device's features as they are.
        pub fn restrict_features(_: &mut cubecl_core::ir::DeviceProperties, _: GpuTarget) {}
    }
}
