//! Codes by latent, against the CPU's.

use super::super::columns::{ColumnsShape, DeviceColumns, RowCodes};
use super::super::engine::Engine;
use super::super::simulator::Simulator;
use super::trial::{codes, every_schedule, get, padded, ragged};
use crate::codes::Codes;
use crate::kernels::Columns;

/// starts, rows, values, segments, owners.
type Found = (Vec<u32>, Vec<u32>, Vec<u32>, Vec<u32>, Vec<u32>);

fn sorted(engine: &dyn Engine, codes: &RowCodes, d_sae: usize, nnz: usize, segment: usize) -> Found {
    let shape = ColumnsShape { d_sae, n: codes.n, capacity: codes.capacity, segment };
    let columns = DeviceColumns::new(engine, shape).unwrap();
    // Twice: what the first run leaves behind must not matter.
    columns.build(engine, codes).unwrap();
    columns.build(engine, codes).unwrap();
    let segments: Vec<u32> = get(engine, &columns.segments, d_sae + 1);
    let owners = get(engine, &columns.owners, segments[d_sae] as usize);
    (get(engine, &columns.starts, d_sae + 1), get(engine, &columns.rows, nnz), get(engine, &columns.values, nnz), segments, owners)
}

fn check(codes: &Codes, k: usize, segment: usize) {
    let (d_sae, nnz) = (codes.d_sae, codes.indices.len());
    let want = Columns::of_codes(codes);
    for rows_of_any_length in [false, true] {
        let (starts, rows, values, segments, owners) = every_schedule(|engine| {
            let on = if rows_of_any_length { ragged(engine, codes) } else { padded(engine, codes, k) };
            sorted(engine, &on.codes, d_sae, nnz, segment)
        });
        assert_eq!(starts.iter().map(|&s| s as usize).collect::<Vec<_>>(), want.starts);
        assert_eq!(rows, want.rows);
        assert_eq!(values, want.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        let mut owner = Vec::new();
        for (j, &first) in segments.iter().enumerate().take(d_sae) {
            assert_eq!(first as usize, owner.len());
            if want.count(j) > segment {
                owner.extend(vec![j as u32; want.count(j).div_ceil(segment)]);
            }
        }
        assert_eq!(owners, owner);
    }
}

#[test]
fn codes_by_latent_are_those_of_the_cpu() {
    for (n, k, d_sae, dense) in [(1, 1, 1, true), (5, 3, 7, false), (100, 8, 1000, true), (33, 5, 2500, false), (300, 6, 40, true)] {
        check(&codes(n as u64, n, k, d_sae, dense), k, 16);
    }
}

#[test]
fn nothing_selected_is_nothing_sorted() {
    let mut none = Codes::new(30);
    (0..9).for_each(|_| none.push_row(std::iter::empty()));
    check(&none, 4, 16);
}

#[test]
fn rows_beyond_the_window_are_ranked_too() {
    let mut codes = Codes::new(3);
    (0..66_000u32).for_each(|r| codes.push_row((r % 500 == 0 || r > 65_500).then_some((1, r as f32)).into_iter()));
    let want = Columns::of_codes(&codes);
    let engine = Simulator::new(2);
    let on = ragged(&engine, &codes);
    let (_, rows, ..) = sorted(&engine, &on.codes, 3, codes.indices.len(), 512);
    assert_eq!(rows, want.rows);
}
