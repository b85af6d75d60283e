//! `heal`: a compressed model gets back what compression cost.

use anyhow::Result;
use kindling_core::Cx;
use kindling_model::adapter::{AdapterConfig, attach};
use kindling_model::{Decoder, ModelFiles};
use kindling_tensor_backend::device::{DeviceName, device};

use crate::cli::{Adapter, AdapterKind, Heal};
use crate::training::taught::{Pupil, teach};

pub(crate) fn run(args: &Heal, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let files = ModelFiles::open(&args.model)?;
    let teacher = args.teacher.as_ref().map(ModelFiles::open).transpose()?;
    let mut model = Decoder::load_dense(&files, &device.clone().autodiff())?;
    let adapter = attached(&mut model, &args.adapter, args.training.run.seed)?;
    let (merge, masked) = (args.adapter.merge, args.adapter.masked);
    let pupil = Pupil { files, model, adapter, merge, kept: Vec::new(), from_scratch: false, masked };
    teach(pupil, teacher.as_ref(), &args.training, &device)
}

/// Puts the adapter on a model, if one is wanted.
pub(super) fn attached(model: &mut Decoder, args: &Adapter, seed: u64) -> Result<Option<AdapterConfig>> {
    if args.kind == AdapterKind::None {
        return Ok(None);
    }
    let config = AdapterConfig {
        rank: args.rank,
        alpha: args.alpha,
        rank_stabilized: false,
        dora: args.kind == AdapterKind::Dora,
        masked: args.masked,
        targets: args.targets.clone(),
    };
    attach(model, &config, &Cx::new(seed))?;
    Ok(Some(config))
}
