//! `distill`: a student learns what a teacher says.

use anyhow::Result;
use kindling_model::{Decoder, ModelFiles};
use kindling_tensor_backend::device::{DeviceName, device};

use crate::cli::Distill;
use crate::error::user;
use crate::training::taught::{Pupil, teach};

pub(crate) fn run(args: &Distill, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let teacher = args.teacher.as_ref().map(ModelFiles::open).transpose()?;
    let Some(student) = args.student.as_ref().or(args.teacher.as_ref()) else {
        return Err(user("a student is needed: name its folder with --student"));
    };
    let files = ModelFiles::open(student)?;
    let mut model = Decoder::load_dense(&files, &device.clone().autodiff())?;
    if !args.keep_blocks.is_empty() {
        model.keep_blocks(&args.keep_blocks)?;
    }
    if args.from_scratch {
        model.randomize(&kindling_core::Cx::new(args.training.run.seed));
    }
    let (kept, from_scratch) = (args.keep_blocks.clone(), args.from_scratch);
    let pupil = Pupil { files, model, adapter: None, merge: false, kept, from_scratch, masked: false };
    teach(pupil, teacher.as_ref(), &args.training, &device)
}
