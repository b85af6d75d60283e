//! Packed codes in a GPU's memory.
//!
//! Layout: 32 codes of one row are a block of `bits` words; the blocks of a row lie side by side and the last is filled up
//! with zeros. Blocks of neighbouring units are neighbours in memory, so a row is read in one stream. Scales are 16 bits
//! where they were (two to a word), zero points bytes (four to a word).
//!
//! A few rows meet the codes in registers: every unit of a team unpacks one block of each of some outputs and multiplies it
//! with the inputs of the block, which the cube shares. Many rows meet the unfolded weight in a general product, which
//! the matrix units of a GPU compute: reading codes once more and writing values is little beside it.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::{calculate_cube_count_elemwise, prelude::*};
use burn_cubecl::tensor::CubeTensor;
use kindling_core::pack::code_at;
use kindling_core::quantized::{Granularity, ScaleType};

use super::{UNITS, cubes, in_order, room, tensor};
use crate::formats::{Packed, Scales};

/// Up to so many rows the codes are unpacked in registers.
pub(crate) const MOST_ROWS: usize = 8;
/// Codes of a block.
const BLOCK: usize = 32;
/// Units that share the blocks of an output.
const TEAM: u32 = 32;
/// Words of shared memory from one block's inputs to the next: units of a team then meet in no bank.
const STEP: u32 = BLOCK as u32 + 4;

/// What a kernel knows of the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    outputs: usize,
    inputs: usize,
    bits: u32,
    /// Blocks of a row, and those that share a scale.
    blocks: usize,
    group: usize,
    /// Scales of a row.
    groups: usize,
    scales: ScaleType,
    zeros: bool,
}

/// A packed weight on a device.
#[derive(Debug, Clone)]
pub(crate) struct DeviceCodes {
    shape: Shape,
    words: Tensor<1, Int>,
    scales: Tensor<1, Int>,
    zeros: Tensor<1, Int>,
    /// The input at every place, where groups are not consecutive.
    order: Option<Tensor<1, Int>>,
    order_host: Option<Vec<u32>>,
}

impl DeviceCodes {
    /// Lays out a packed weight; `None` for groups that are not whole blocks, and for a matrix without rows or inputs.
    pub(crate) fn new(packed: &Packed, device: &Device) -> Option<Self> {
        let [outputs, inputs] = packed.shape();
        let group = packed.granularity().group_len(inputs);
        if outputs == 0 || inputs == 0 || group < inputs && !group.is_multiple_of(BLOCK) {
            return None;
        }
        let order = match (packed.group_index(), packed.granularity()) {
            (Some(index), Granularity::Group(size)) => Some(crate::formats::order_of(index, size)?),
            _ => None,
        };
        let bits = packed.bits();
        let (blocks, groups) = (inputs.div_ceil(BLOCK), inputs.div_ceil(group));
        let shape = Shape {
            outputs,
            inputs,
            bits: u32::from(bits),
            blocks,
            group: group.div_ceil(BLOCK),
            groups,
            scales: packed.scales().scale_type(),
            zeros: packed.zeros().is_some(),
        };
        let per_row = packed.words().len() / outputs;
        let mut words = Vec::with_capacity(outputs * blocks * usize::from(bits));
        for row in packed.words().chunks_exact(per_row) {
            let end = words.len() + blocks * usize::from(bits);
            match &order {
                None => words.extend_from_slice(row),
                Some(order) => {
                    let codes: Vec<u8> = order.iter().map(|&input| code_at(row, bits, input as usize)).collect();
                    words.extend(kindling_core::pack::pack_rows(&codes, inputs, bits).ok()?);
                }
            }
            words.resize(end, 0);
        }
        let whole = packed.granularity() == Granularity::Tensor;
        let place = |i: usize| if whole { 0 } else { i };
        let scales = scale_words(packed.scales(), outputs * groups, place);
        let zeros: Vec<u8> =
            packed.zeros().map_or_else(Vec::new, |zeros| (0..outputs * groups).map(|i| zeros[place(i)]).collect());
        let zeros = zeros.chunks(4).map(|four| four.iter().rev().fold(0, |word, &zero| word << 8 | u32::from(zero)));
        let on_device = |words: Vec<u32>| {
            // No buffer of a kernel may be empty.
            let words = if words.is_empty() { vec![0] } else { words };
            let len = words.len();
            Tensor::<1, Int>::from_data(TensorData::new(words, [len]), (device, DType::U32))
        };
        Some(Self {
            shape,
            words: on_device(words),
            scales: on_device(scales),
            zeros: on_device(zeros.collect()),
            order: order.as_ref().map(|order| {
                let order: Vec<i32> = order.iter().map(|&input| input as i32).collect();
                Tensor::from_data(TensorData::new(order, [inputs]), device)
            }),
            order_host: order,
        })
    }

    /// `[out, in]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.shape.outputs, self.shape.inputs]
    }

    /// Bytes in the device's memory.
    pub(crate) fn bytes(&self) -> usize {
        let order = self.order.as_ref().map_or(0, |order| order.dims()[0]);
        4 * (self.words.dims()[0] + self.scales.dims()[0] + self.zeros.dims()[0] + order)
    }

    /// One matrix of several with the same inputs, the outputs of the first before those of the next; `None` where they
    /// differ in anything else.
    pub(crate) fn stacked(parts: &[&Self]) -> Option<Self> {
        let first = *parts.first()?;
        let like = |part: &&Self| {
            Shape { outputs: 0, ..part.shape } == Shape { outputs: 0, ..first.shape }
                && part.order_host == first.order_host
        };
        // Scales and zero points share words: a part must end with one.
        let whole = |part: &&Self| (part.shape.outputs * part.shape.groups).is_multiple_of(4);
        if !parts.iter().all(like) || !parts[..parts.len() - 1].iter().all(whole) {
            return None;
        }
        let joined =
            |of: fn(&Self) -> &Tensor<1, Int>| Tensor::cat(parts.iter().map(|part| of(part).clone()).collect(), 0);
        let zeros = if first.shape.zeros { joined(|part| &part.zeros) } else { first.zeros.clone() };
        Some(Self {
            shape: Shape { outputs: parts.iter().map(|part| part.shape.outputs).sum(), ..first.shape },
            words: joined(|part| &part.words),
            scales: joined(|part| &part.scales),
            zeros,
            order: first.order.clone(),
            order_host: first.order_host.clone(),
        })
    }

    /// All values, `[out, in]`, on the device.
    pub(crate) fn unfold(&self) -> Tensor<2> {
        let values = self.unfold_in_order();
        let Some(order) = &self.order_host else { return values };
        let mut place = vec![0_i32; order.len()];
        order.iter().enumerate().for_each(|(at, &input)| place[input as usize] = at as i32);
        let place = Tensor::<1, Int>::from_data(TensorData::new(place, [order.len()]), &values.device());
        values.select(1, place)
    }

    fn unfold_in_order(&self) -> Tensor<2> {
        let [words, scales, zeros] = self.buffers();
        let out = room(&words, self.shape());
        let (client, units) = (words.client.clone(), self.shape.outputs * self.shape.blocks);
        let dim = CubeDim::new_1d(UNITS);
        unfold_blocks::launch(
            &client,
            calculate_cube_count_elemwise(&client, units, dim),
            dim,
            words.into_buffer_arg(),
            scales.into_buffer_arg(),
            zeros.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            self.shape,
        );
        tensor(out)
    }

    /// `x [rows, in] · Wᵀ`, `[rows, out]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = match &self.order {
            Some(order) => x.select(1, order.clone()),
            None => x,
        };
        let [rows, _] = x.dims();
        if rows > MOST_ROWS {
            return x.matmul(self.unfold_in_order().transpose());
        }
        let x = in_order(x);
        let [words, scales, zeros] = self.buffers();
        let out = room(&x, [rows, self.shape.outputs]);
        // One row leaves registers for several outputs, which share its inputs.
        let outputs: u32 = if rows == 1 { 4 } else { 1 };
        let teams = 4;
        let client = x.client.clone();
        if rows > 0 {
            meet_rows::launch(
                &client,
                cubes(self.shape.outputs.div_ceil((outputs * teams) as usize)),
                CubeDim::new_2d(TEAM, teams),
                x.into_buffer_arg(),
                words.into_buffer_arg(),
                scales.into_buffer_arg(),
                zeros.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                self.shape,
                rows as u32,
                outputs,
                teams,
            );
        }
        tensor(out)
    }

    fn buffers(&self) -> [CubeTensor; 3] {
        [&self.words, &self.scales, &self.zeros]
            .map(|words| words.clone().try_into_primitive::<burn_cubecl::Cube>().expect("laid out for this device"))
    }
}

/// Scales as words: one each, or two in 16 bits.
fn scale_words(scales: &Scales, count: usize, place: impl Fn(usize) -> usize) -> Vec<u32> {
    let halves = |bits: &dyn Fn(usize) -> u16| -> Vec<u32> {
        let bit = |i: usize| if i < count { u32::from(bits(place(i))) } else { 0 };
        (0..count).step_by(2).map(|i| bit(i) | bit(i + 1) << 16).collect()
    };
    match scales {
        Scales::F32(scales) => (0..count).map(|i| scales[place(i)].to_bits()).collect(),
        Scales::F16(scales) => halves(&|i| scales[i].to_bits()),
        Scales::BF16(scales) => halves(&|i| scales[i].to_bits()),
    }
}

/// Scale `at`.
#[cube]
fn scale_at(scales: &[u32], at: usize, #[comptime] kind: ScaleType) -> f32 {
    if comptime!(kind == ScaleType::F32) {
        f32::reinterpret(scales[at])
    } else {
        let bits = (scales[at / 2] >> ((at % 2) as u32 * 16)) & 0xffff;
        if comptime!(kind == ScaleType::BF16) {
            f32::reinterpret(bits << 16)
        } else {
            // The exponent of 16 bits counts from 15, that of 32 from 127; below the smallest exponent the digits are a
            // whole number of 2^-24.
            let exponent = (bits >> 10) & 31;
            let digits = bits & 0x3ff;
            let small = f32::cast_from(digits) * (1.0f32 / 16777216.0f32);
            let normal = f32::reinterpret(((exponent + 112) << 23) | (digits << 13));
            let size = select(exponent == 0, small, normal);
            select(bits >> 15 == 0, size, -size)
        }
    }
}

/// The zero point at `at`.
#[cube]
fn zero_at(zeros: &[u32], at: usize, #[comptime] shape: Shape) -> f32 {
    if comptime!(shape.zeros) {
        f32::cast_from((zeros[at / 4] >> ((at % 4) as u32 * 8)) & 0xff)
    } else {
        f32::cast_from(comptime!(1u32 << (shape.bits - 1)))
    }
}

/// Code `code` of a block whose words start at `first` of `words`.
#[cube]
fn code_in(words: &Array<u32>, first: usize, #[comptime] code: u32, #[comptime] bits: u32) -> f32 {
    let bit = comptime!(code * bits);
    let (word, shift) = comptime!((bit as usize / 32, bit % 32));
    let mask = comptime!((1u32 << bits) - 1);
    let mut value = words[first + word] >> shift;
    if comptime!(shift + bits > 32) {
        value |= words[first + word + 1] << comptime!(32 - shift);
    }
    f32::cast_from(value & mask)
}

/// One unit is one block.
#[cube(launch)]
fn unfold_blocks(words: &[u32], scales: &[u32], zeros: &[u32], out: &mut [f32], #[comptime] shape: Shape) {
    let (row, block) = (ABSOLUTE_POS / shape.blocks, ABSOLUTE_POS % shape.blocks);
    if row < shape.outputs {
        let mut held = Array::<u32>::new(shape.bits as usize);
        #[unroll]
        for i in 0..shape.bits as usize {
            held[i] = words[ABSOLUTE_POS * shape.bits as usize + i];
        }
        let group = row * shape.groups + block / shape.group;
        let scale = scale_at(scales, group, shape.scales);
        let zero = zero_at(zeros, group, shape);
        #[unroll]
        for code in 0..32u32 {
            let input = block * 32 + code as usize;
            if input < shape.inputs {
                let value = code_in(&held, 0, code, shape.bits);
                out[row * shape.inputs + input] = scale * (value - zero);
            }
        }
    }
}

/// A team of units is `outputs` rows of the weight, which meet `rows` rows of `x`.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "buffers and numbers of one kernel")]
fn meet_rows(
    x: &[f32],
    words: &[u32],
    scales: &[u32],
    zeros: &[u32],
    out: &mut [f32],
    #[comptime] shape: Shape,
    #[comptime] rows: u32,
    #[comptime] outputs: u32,
    #[comptime] teams: u32,
) {
    let (unit, team) = (UNIT_POS_X, UNIT_POS_Y);
    let first = (CUBE_POS * teams as usize + team as usize) * outputs as usize;
    let bits = comptime!(shape.bits as usize);
    let mut inputs = Shared::<[f32]>::new_slice(comptime!((TEAM * STEP) as usize));
    let mut held = Array::<u32>::new(comptime!(outputs as usize * shape.bits as usize));
    let mut scale = Array::<f32>::new(outputs as usize);
    let mut zero = Array::<f32>::new(outputs as usize);
    let mut sums = Array::<f32>::new(comptime!((outputs * rows) as usize));
    #[unroll]
    for i in 0..comptime!((outputs * rows) as usize) {
        sums[i] = 0.0;
    }
    // A stretch is a block for every unit of a team.
    let stretches = comptime!(shape.blocks.div_ceil(TEAM as usize));
    for stretch in 0..stretches {
        // Beyond the row's end the last block meets inputs of zero; beyond the last output, the last is computed once more.
        let mine = stretch * comptime!(TEAM as usize) + unit as usize;
        let block = select(mine < shape.blocks, mine, comptime!(shape.blocks - 1));
        #[unroll]
        for r in 0..outputs as usize {
            let row = select(first + r < shape.outputs, first + r, comptime!(shape.outputs - 1));
            #[unroll]
            for i in 0..bits {
                held[r * bits + i] = words[(row * shape.blocks + block) * bits + i];
            }
            let group = row * shape.groups + block / shape.group;
            scale[r] = scale_at(scales, group, shape.scales);
            zero[r] = zero_at(zeros, group, shape);
        }
        #[unroll]
        for t in 0..rows as usize {
            sync_cube();
            let mut i = UNIT_POS;
            while i < comptime!(TEAM * 32) {
                let input = stretch * comptime!(TEAM as usize * 32) + i as usize;
                let mut value = 0.0f32;
                if input < shape.inputs {
                    value = x[t * shape.inputs + input];
                }
                inputs[(i / 32 * STEP + i % 32) as usize] = value;
                i += comptime!(TEAM * teams);
            }
            sync_cube();
            #[unroll]
            for code in 0..32u32 {
                let value = inputs[(unit * STEP + code) as usize];
                #[unroll]
                for r in 0..outputs as usize {
                    let weight = scale[r] * (code_in(&held, r * bits, code, shape.bits) - zero[r]);
                    sums[r * rows as usize + t] += weight * value;
                }
            }
        }
    }
    // The sums of a team's units, pair by pair.
    let mut parts = Shared::<[f32]>::new_slice(comptime!((TEAM * teams) as usize));
    let here = UNIT_POS as usize;
    #[unroll]
    for i in 0..comptime!((outputs * rows) as usize) {
        sync_cube();
        parts[here] = sums[i];
        sync_cube();
        #[unroll]
        for step in 0..comptime!(TEAM.ilog2()) {
            let half = comptime!(TEAM >> (step + 1));
            if unit < half {
                let other = parts[here + half as usize];
                parts[here] += other;
            }
            sync_cube();
        }
        let (r, t) = comptime!((i / rows as usize, i % rows as usize));
        if unit == 0 && first + r < shape.outputs {
            out[t * shape.outputs + first + r] = parts[here];
        }
    }
}
