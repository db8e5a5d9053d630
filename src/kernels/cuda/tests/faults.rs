//! kernels/sim/faults.cu: each fault must be reported, in words that lead to it.

use super::{buffer, schedules, values};
use crate::kernels::cuda::engine::{Arg, Engine, Grid};
use crate::kernels::cuda::simulator::Simulator;

/// What the launch says, if it fails.
fn complaint(engine: &Simulator, kernel: &'static str, grid: Grid, args: &[Arg]) -> Option<String> {
    engine.launch(kernel, grid, args).err().map(|e| e.to_string())
}

/// Launched with 64 threads and one buffer of 64 numbers.
fn found_everywhere(kernel: &'static str, words: &[&str]) {
    for engine in schedules() {
        let to = buffer(&engine, &[0u32; 64]);
        let said = complaint(&engine, kernel, Grid::line(1, 64), &[Arg::from(&to)]).unwrap_or_else(|| panic!("{engine:?} finds nothing"));
        for word in words {
            assert!(said.contains(word), "`{word}` in: {said}");
        }
    }
}

#[test]
fn divergent_barrier() {
    found_everywhere("fault_divergent_barrier", &["divergent barrier", "faults.cu:", "__syncthreads"]);
}

#[test]
fn missing_lane() {
    found_everywhere("fault_missing_lane", &["thread 5 (lane 5) returned", "__shfl_xor_sync(mask ffffffff)", "common.cuh:"]);
}

#[test]
fn mask_without_the_caller() {
    found_everywhere("fault_mask", &["__ballot_sync(mask 0000ffff) at faults.cu:", "the mask leaves it out"]);
}

#[test]
fn two_collectives_at_once() {
    found_everywhere("fault_two_collectives", &["divergent collective", "__ballot_sync", "__shfl_sync"]);
}

#[test]
fn deadlock() {
    let words = ["DEADLOCK", "threads 0-39, 41-63 wait in __syncthreads at faults.cu:", "thread 40 wait in __syncwarp(mask ffffffff)"];
    found_everywhere("fault_deadlock", &words);
}

#[test]
fn livelock() {
    found_everywhere("fault_livelock", &["LIVELOCK", "threads 0-63 spin"]);
}

#[test]
fn trap() {
    found_everywhere("fault_trap", &["called __trap"]);
}

/// In how many of the orders are results not right, or races told?
fn wrong_orders(kernel: &'static str, right: impl Fn(usize) -> usize) -> usize {
    let (n, from) = (300, (0..300).map(|i| i * 7 + 1).collect::<Vec<u32>>());
    schedules()
        .filter(|engine| {
            let (from_at, to) = (buffer(engine, &from), buffer(engine, &vec![0u32; n]));
            let grid = Grid::line(3, 128).with_shared(128 * 4);
            let told = engine.launch(kernel, grid, &[Arg::from(&from_at), Arg::from(&to), Arg::U32(n as u32)]).is_err();
            let right: Vec<u32> = (0..n).map(|i| from.get(right(i)).copied().unwrap_or(0)).collect();
            told || values::<u32>(engine, &to) != right
        })
        .count()
}

fn mirrored(i: usize) -> usize {
    i / 128 * 128 + 127 - i % 128
}

#[test]
fn missing_barrier_shows_in_the_results() {
    assert_eq!(wrong_orders("fault_none", mirrored), 0);
    assert!(wrong_orders("fault_missing_barrier", mirrored) > 0);
    assert!(wrong_orders("fault_missing_syncwarp", |i| i ^ 1) > 0);
}

#[test]
fn shared_memory_begins_as_poison() {
    for engine in schedules() {
        let to = engine.alloc(3 * 64 * 4).unwrap();
        engine.launch("fault_stale_shared", Grid::line(3, 64), &[Arg::from(&to)]).unwrap();
        let got: Vec<u32> = values(&engine, &to);
        assert!(got.iter().enumerate().all(|(i, &v)| v == if i % 64 < 32 { i as u32 / 64 } else { 0xcbcb_cbcb }), "{got:?}");
    }
}

#[test]
fn overruns_are_found_by_the_sanitizer() {
    if option_env!("LAPIDARY_SANITIZE") != Some("1") {
        eprintln!("skipped: overruns show only under LAPIDARY_SANITIZE=1");
        return;
    }
    for engine in schedules() {
        let to = buffer(&engine, &[0u32; 32]);
        let args = [Arg::from(&to), Arg::U32(32)];
        for (kernel, grid) in [("fault_shared_overrun", Grid::line(1, 32).with_shared(128)), ("fault_static_overrun", Grid::line(1, 32))] {
            let said = complaint(&engine, kernel, grid, &args).unwrap_or_else(|| panic!("nothing found in {kernel}"));
            assert!(said.contains("the sanitizer found"), "{said}");
        }
        let said = complaint(&engine, "fault_global_overrun", Grid::line(1, 64), &args[..1]).expect("an overrun");
        assert!(said.contains("heap-buffer-overflow"), "{said}");
    }
}

#[test]
fn races_are_found_in_every_order() {
    if option_env!("LAPIDARY_SANITIZE") != Some("races") {
        eprintln!("skipped: races show only under LAPIDARY_SANITIZE=races");
        return;
    }
    let from: Vec<u32> = (0..512).collect();
    for engine in schedules() {
        let (from_at, to) = (buffer(&engine, &from), buffer(&engine, &from));
        let args = [Arg::from(&from_at), Arg::from(&to), Arg::U32(4)];
        let say = |kernel, blocks| complaint(&engine, kernel, Grid::line(blocks, 128).with_shared(512), &args).unwrap_or_default();
        assert_eq!(say("fault_none", 2), "");
        for kernel in ["fault_missing_barrier", "fault_missing_syncwarp", "fault_buffer_reused"] {
            let said = say(kernel, 1);
            assert!(said.contains("RACE: thread") && said.contains("shared memory"), "{said}");
        }
        let said = say("fault_blocks_meet", 2);
        assert!(said.contains("RACE: thread") && said.contains("of another block") && said.contains("a buffer of 2048"), "{said}");
        let zeroes = buffer(&engine, &[0u32; 16]);
        let args = [Arg::from(&from_at), Arg::from(&zeroes), Arg::U32(4)];
        assert_eq!(complaint(&engine, "fault_none_last_block", Grid::line(3, 128), &args), None);
        assert_eq!(values::<u32>(&engine, &zeroes)[..5], [0, 4, 8, 3, 12]);
    }
}

#[test]
fn launches_are_checked() {
    let engine = Simulator::default();
    let to = buffer(&engine, &[0u32; 64]);
    let (line, pointer) = (Grid::line(1, 64), Arg::from(&to));
    let say = |kernel, grid, args: &[Arg]| complaint(&engine, kernel, grid, args).expect("refused");
    assert!(say("nobody", line, &[]).contains("no kernel `nobody`"));
    assert!(say("fault_trap", line, &[]).contains("1 parameters, and 0 arguments"));
    assert!(say("fault_static_overrun", line, &[pointer, Arg::U64(1)]).contains("argument 1"));
    assert!(say("fault_trap", Grid::line(1, 2048), &[pointer]).contains("no device launches"));
    assert!(say("fault_none", line, &[pointer, pointer, Arg::U32(1)]).contains("gave it none"));
}
