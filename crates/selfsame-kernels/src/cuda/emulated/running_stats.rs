//! Running statistics: the same bits as on the CPU.

use candle_core::{Device, Tensor};

use super::Memory;
use crate::cuda::launch::{Element, RunningNorm, move_running_stats, running_table};
use crate::multi_tensor::{self, RunningStats};
use crate::testing::values;

const MOMENTUM: f64 = 0.1;
/// Channels of each norm, and how many batches it saw.
const NORMS: [(usize, usize); 4] = [(1, 1), (64, 3), (300, 2), (512, 1)];

/// Mean and variance as bits and the count of each norm.
type State = Vec<([Vec<u32>; 2], i64)>;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Of norm `i`: running mean and variance, then those of each batch.
fn pairs(i: usize) -> Vec<[Vec<f32>; 2]> {
    let (channels, num_batches) = NORMS[i];
    let pair = |j: usize| {
        let seed = (100 * i + 10 * j) as u64;
        [values(channels, seed, 1.0), values(channels, seed + 1, 2.0)]
    };
    (0..=num_batches).map(pair).collect()
}

/// All norms seen so many batches before.
const BEFORE: i64 = 5;

fn emulated(done: Option<f32>) -> State {
    let mut memory = Memory::default();
    let mut norms = Vec::new();
    for (i, (channels, _)) in NORMS.into_iter().enumerate() {
        let mut places = pairs(i)
            .into_iter()
            .map(|pair| pair.map(|values| memory.f32(&values)))
            .collect::<Vec<_>>()
            .into_iter();
        let [mean, variance] = places.next().unwrap();
        norms.push(RunningNorm {
            mean,
            variance,
            num_batches_tracked: memory.bytes(BEFORE.to_le_bytes().to_vec()),
            channels,
            batches: places.collect(),
        });
    }
    let table = memory.table(&running_table(&norms));
    let done = done.map(|done| memory.f32(&[done]));
    memory.run(&[move_running_stats(table, done, norms.len(), MOMENTUM).unwrap()]);
    let state = norms.iter().map(|norm| {
        let read = |place| bits(&memory.read(Element::F32, place));
        let count = &memory.buffers[norm.num_batches_tracked as usize];
        let count = i64::from_le_bytes(count.as_slice().try_into().unwrap());
        ([norm.mean, norm.variance].map(read), count)
    });
    state.collect()
}

fn on_cpu() -> State {
    let tensor = |values: &Vec<f32>| Tensor::new(values.as_slice(), &Device::Cpu).unwrap();
    let mut state = Vec::new();
    for i in 0..NORMS.len() {
        let pairs: Vec<_> = pairs(i)
            .iter()
            .map(|[mean, variance]| [tensor(mean), tensor(variance)])
            .collect();
        let ([mean, variance], batches) = (&pairs[0], &pairs[1..]);
        let num_batches_tracked = Tensor::new(BEFORE, &Device::Cpu).unwrap();
        let stats: Vec<_> = batches
            .iter()
            .map(|[batch_mean, batch_variance]| RunningStats {
                mean,
                variance,
                num_batches_tracked: &num_batches_tracked,
                batch: [batch_mean, batch_variance],
            })
            .collect();
        multi_tensor::move_running_stats(&stats, MOMENTUM, None).unwrap();
        let moved = [mean, variance].map(|tensor| bits(&tensor.to_vec1::<f32>().unwrap()));
        state.push((moved, num_batches_tracked.to_scalar::<i64>().unwrap()));
    }
    state
}

#[test]
#[ignore = "needs g++"]
fn running_statistics_have_the_bits_of_the_cpu() {
    let want = on_cpu();
    assert_eq!(want[1].1, BEFORE + 3);
    for done in [None, Some(1.0)] {
        assert!(emulated(done) == want, "{done:?}");
    }
}

#[test]
#[ignore = "needs g++"]
fn running_statistics_stay_if_the_step_was_not_done() {
    for (i, (now, count)) in emulated(Some(0.0)).into_iter().enumerate() {
        let before = &pairs(i)[0];
        assert_eq!(now, [bits(&before[0]), bits(&before[1])]);
        assert_eq!(count, BEFORE);
    }
}
