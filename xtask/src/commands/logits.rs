//! `logits`: what the model computes for given token ids.

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use kindling_model::checkpoint::{DType, OutTensor};
use kindling_model::{Decoder, ModelError, ModelFiles, Wanted};
use kindling_tensor_backend::device::{DeviceName, device};

use crate::cli::Logits;
use crate::{output, tokens};

pub(crate) fn run(args: &Logits, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let rows = tokens::rows(&args.input)?;
    let model = Decoder::load(&ModelFiles::open(&args.model)?, &device)?;
    let mut tensors = Vec::new();
    if args.hidden {
        let (logits, hidden) = model.forward_with_hidden(&rows)?;
        tensors.push(tensor("logits", logits)?);
        for (k, hidden) in hidden.into_iter().enumerate() {
            tensors.push(tensor(&format!("hidden.{k}"), hidden)?);
        }
    } else {
        let logits = model.forward(&rows, &[], &mut model.new_kv(), Wanted::AllLogits)?;
        tensors.push(tensor("logits", logits)?);
    }
    let names = tensors.iter().map(|tensor| format!("{} {:?}", tensor.name, tensor.shape)).collect::<Vec<_>>();
    tokens::write(&args.output, &tensors)?;
    output::line(format_args!("wrote {} to {}", names.join(", "), args.output.display()))
}

fn tensor(name: &str, x: Tensor<3>) -> Result<OutTensor<'static>> {
    let shape = x.dims();
    let values = values(x)?;
    Ok(OutTensor::from_f32(name, DType::F32, &shape, &values).map_err(ModelError::from)?)
}

/// The values of a tensor on the host.
pub(super) fn values<const D: usize>(x: Tensor<D>) -> Result<Vec<f32>> {
    let values = x.into_data().convert::<f32>().try_to_vec::<f32>();
    values.map_err(|error| anyhow::anyhow!("{error:?}")).context("a tensor could not be read back")
}
