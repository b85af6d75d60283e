//! `distill`: a student learns what a teacher says.

use anyhow::Result;
use kindling_model::{Decoder, ModelFiles};
use kindling_tensor_backend::device::{DeviceName, device};

use crate::cli::Distill;
use crate::training::taught::{Pupil, teach};

pub(crate) fn run(args: &Distill, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let teacher = ModelFiles::open(&args.teacher)?;
    let files = match &args.student {
        Some(student) => ModelFiles::open(student)?,
        None => ModelFiles::open(&args.teacher)?,
    };
    let mut model = Decoder::load_dense(&files, &device.clone().autodiff())?;
    if !args.keep_blocks.is_empty() {
        model.keep_blocks(&args.keep_blocks)?;
    }
    if args.from_scratch {
        model.randomize(&kindling_core::Cx::new(args.training.seed));
    }
    let (kept, from_scratch) = (args.keep_blocks.clone(), args.from_scratch);
    let pupil = Pupil { files, model, adapter: None, merge: false, kept, from_scratch, masked: false };
    teach(pupil, Some(&teacher), &args.training, &device)
}
