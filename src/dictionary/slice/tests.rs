use candle_core::{Device, Tensor};

use super::*;
use crate::dictionary::{InputTransform, Provenance};
use crate::kernels::Coder;
use crate::rng::Rng;

fn dictionary(w: &[f32], b: &[f32], b_dec: &[f32], k: usize) -> Dictionary {
    let (n, d) = (b.len(), b_dec.len());
    let tensor = |v: &[f32], shape: (usize, usize)| Tensor::from_slice(v, shape, &Device::Cpu).unwrap();
    let coder = Coder {
        w_enc: tensor(w, (n, d)),
        b_enc: Tensor::from_slice(b, n, &Device::Cpu).unwrap(),
        w_dec: tensor(w, (n, d)),
        b_dec: Tensor::from_slice(b_dec, d, &Device::Cpu).unwrap(),
    };
    Dictionary::new(coder, Activation::TopK { k }, true, Provenance::default()).unwrap()
}

/// Normal weights; biases below 0, so that in some places fewer than K latents are positive.
fn drawn(seed: u64, n: usize, d: usize, k: usize, bias: f64) -> Dictionary {
    let mut rng = Rng::stream(seed, "slice test", 0);
    let mut draw = |n: usize, scale: f64, shift: f64| -> Vec<f32> { (0..n).map(|_| (scale * rng.normal() + shift) as f32).collect() };
    dictionary(&draw(n * d, (1.0 / d as f64).sqrt(), 0.0), &draw(n, 0.3, bias), &draw(d, 1.0, 0.0), k)
}

/// Distance of a point inside a convex polygon from its nearest edge; negative outside.
fn depth(cell: &Cell, p: (f64, f64)) -> f64 {
    let next = cell.corners.iter().cycle().skip(1);
    let edge = |(a, b): (&(f64, f64), &(f64, f64))| {
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        (dx * (p.1 - a.1) - dy * (p.0 - a.0)) / dx.hypot(dy)
    };
    cell.corners.iter().zip(next).map(edge).fold(f64::INFINITY, f64::min)
}

/// Points drawn in the box: (how many were compared, how many lie within 1e-5 of an edge).
fn agrees(dictionary: &Dictionary, plane: &Plane, cells: &Cells, points: usize, seed: u64) -> (usize, usize) {
    let mut rng = Rng::stream(seed, "slice points", 0);
    let (mut compared, mut near) = (0, 0);
    let places: Vec<(f64, f64)> =
        (0..points).map(|_| (cells.half * (2.0 * rng.uniform() - 1.0), cells.half * (2.0 * rng.uniform() - 1.0))).collect();
    let x: Vec<f32> = places
        .iter()
        .flat_map(|(s, t)| plane.origin.iter().zip(&plane.u).zip(&plane.v).map(move |((o, u), v)| (o + s * u + t * v) as f32))
        .collect();
    let codes = dictionary.encode(&Tensor::from_slice(&x, (points, plane.origin.len()), &Device::Cpu).unwrap()).unwrap();
    for (r, p) in places.iter().enumerate() {
        let (cell, inside) = cells.cells.iter().map(|c| (c, depth(c, *p))).max_by(|a, b| a.1.total_cmp(&b.1)).expect("there is a cell");
        if inside < 1e-5 {
            near += 1;
            continue;
        }
        let mut fired = codes.row(r).0.to_vec();
        fired.sort_unstable();
        assert_eq!(cell.latents, fired, "at {p:?}");
        compared += 1;
    }
    (compared, near)
}

#[test]
fn cells_have_the_active_sets_of_encode() {
    let (mut compared, mut near, mut cells_seen) = (0, 0, 0);
    for (seed, n, d, k, bias) in
        [(0, 40, 2, 1, 0.0), (1, 60, 16, 3, -0.2), (2, 96, 24, 8, -0.6), (3, 300, 32, 5, 0.1), (4, 64, 8, 64, -0.3)]
    {
        let dictionary = drawn(seed, n, d, k, bias);
        for choice in ["random:7", "latents:1,4", "pca"] {
            let plane = Plane::choose(choice.parse().unwrap(), &dictionary).unwrap();
            let slice = Slice::of(&dictionary, &plane).unwrap();
            let cells = slice.cells(3.0, 100_000);
            assert!(cells.is_complete);
            assert!((cells.share() - 1.0).abs() < 1e-9, "{choice} of seed {seed}: {}", cells.share());
            let (same, close) = agrees(&dictionary, &plane, &cells, 1000, seed);
            compared += same;
            near += close;
            cells_seen += cells.cells.len();
            for (i, cell) in cells.cells.iter().enumerate() {
                assert!(cell.neighbours.iter().all(|&n| n != i && cells.cells[n].neighbours.contains(&i)), "neighbours are mutual");
            }
        }
    }
    println!("{compared} points compared, {near} within 1e-5 of an edge, {cells_seen} cells");
    assert!(compared > 14_000 && compared + near == 15_000 && cells_seen > 1000, "{compared} {near} {cells_seen}");
}

/// The definition: the box cut by every pair, of every set in turn.
#[test]
fn the_walk_finds_every_cell() {
    let dictionary = drawn(5, 9, 3, 2, -0.1);
    let plane = Plane::choose(PlaneChoice::Random { seed: 1 }, &dictionary).unwrap();
    let slice = Slice::of(&dictionary, &plane).unwrap();
    let cells = slice.cells(4.0, 1000);
    // A fine raster meets every cell that is not tiny, and no other.
    let mut met = std::collections::BTreeSet::new();
    for i in 0..900 * 900 {
        let place = |i: usize| 4.0 * ((2 * i + 1) as f64 / 900.0 - 1.0);
        met.insert(slice.active(place(i % 900), place(i / 900)));
    }
    let found: std::collections::BTreeSet<Vec<u32>> = cells.cells.iter().map(|c| c.latents.clone()).collect();
    assert!(met.is_subset(&found), "missing {:?}", met.difference(&found).collect::<Vec<_>>());
    for cell in cells.cells.iter().filter(|c| !met.contains(&c.latents)) {
        assert!(cell.area < 0.01, "{cell:?} is not in the raster");
    }
}

#[test]
fn one_latent_with_equal_weights_is_a_voronoi_diagram() {
    // alpha = 2 b + |w|^2 equal for all: b = (c - |w|^2) / 2; c so large that every z is positive.
    let mut rng = Rng::stream(0, "voronoi", 0);
    let w: Vec<f32> = (0..2 * 12).map(|_| rng.normal() as f32).collect();
    let b: Vec<f32> = w.chunks(2).map(|w| 0.5 * (60.0 - w[0] * w[0] - w[1] * w[1])).collect();
    let dictionary = dictionary(&w, &b, &[0.0; 2], 1);
    let plane = Plane::new(vec![0.0; 2], vec![1.0, 0.0], vec![0.0, 1.0], ["x", "y"]).unwrap();
    let cells = Slice::of(&dictionary, &plane).unwrap().cells(2.0, 100);
    assert!((cells.share() - 1.0).abs() < 1e-12 && cells.cells.len() <= 12);
    for i in 0..4000 {
        let p = (4.0 * rng.uniform() - 2.0, 4.0 * rng.uniform() - 2.0);
        let far = |c: &[f32]| (f64::from(c[0]) - p.0).powi(2) + (f64::from(c[1]) - p.1).powi(2);
        let nearest = w.chunks(2).enumerate().min_by(|a, b| far(a.1).total_cmp(&far(b.1))).unwrap().0;
        let cell = cells.cells.iter().max_by(|a, b| depth(a, p).total_cmp(&depth(b, p))).unwrap();
        assert!(cell.latents == [nearest as u32] || depth(cell, p) < 1e-5, "point {i}");
    }
}

#[test]
fn equal_and_empty_latents_follow_the_tie_rule() {
    // Latents 1 and 2 are the same, 3 is nothing; all lines pass through the origin, which is no cell.
    let w = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, -1.0, -1.0];
    let dictionary = dictionary(&w, &[0.0; 5], &[0.0; 2], 1);
    let plane = Plane::new(vec![0.0; 2], vec![1.0, 0.0], vec![0.0, 1.0], ["x", "y"]).unwrap();
    let cells = Slice::of(&dictionary, &plane).unwrap().cells(1.0, 100);
    let sets: std::collections::BTreeSet<Vec<u32>> = cells.cells.iter().map(|c| c.latents.clone()).collect();
    assert_eq!(sets.into_iter().collect::<Vec<_>>(), [vec![0], vec![1], vec![4]]);
    assert!((cells.share() - 1.0).abs() < 1e-12);
    assert_eq!(agrees(&dictionary, &plane, &cells, 500, 0).0 + agrees(&dictionary, &plane, &cells, 500, 0).1, 500);
}

#[test]
fn scales_and_transforms_are_taken_in() {
    let mut dictionary = drawn(6, 50, 12, 4, -0.2);
    let mut rng = Rng::stream(6, "slice scales", 0);
    let draw = |n: usize, rng: &mut Rng| {
        Tensor::from_vec((0..n).map(|_| (0.5 + rng.uniform()) as f32).collect::<Vec<f32>>(), n, &Device::Cpu).unwrap()
    };
    dictionary.selection_scale = Some(draw(50, &mut rng));
    dictionary.input_transform = Some(InputTransform { shift: draw(12, &mut rng), scale: 0.5 });
    let plane = Plane::choose(PlaneChoice::Random { seed: 3 }, &dictionary).unwrap();
    let cells = Slice::of(&dictionary, &plane).unwrap().cells(5.0, 100_000);
    assert!((cells.share() - 1.0).abs() < 1e-9 && cells.cells.len() > 50);
    assert!(agrees(&dictionary, &plane, &cells, 1000, 6).0 > 990);
}

#[test]
fn the_middle_comes_first_when_there_are_too_many() {
    let dictionary = drawn(7, 400, 16, 8, 0.0);
    let plane = Plane::choose(PlaneChoice::Random { seed: 0 }, &dictionary).unwrap();
    let slice = Slice::of(&dictionary, &plane).unwrap();
    let all = slice.cells(4.0, usize::MAX);
    assert!(all.is_complete && all.cells.len() > 100, "{}", all.cells.len());
    let some = slice.cells(4.0, 40);
    assert!(!some.is_complete && some.cells.len() == 40 && some.share() < all.share());
    let known: std::collections::BTreeSet<&Vec<u32>> = all.cells.iter().map(|c| &c.latents).collect();
    assert!(some.cells.iter().all(|c| known.contains(&c.latents)));
    assert_eq!(some.cells, slice.cells(4.0, 40).cells, "the same each time");
    let centre = slice.active(1e-9, 1e-9);
    assert!(some.cells.iter().any(|c| c.latents == centre));
}

#[test]
fn planes_are_orthonormal_and_refuse_nonsense() {
    let dictionary = drawn(8, 30, 10, 2, 0.0);
    for choice in ["random:0", "latents:3,9", "pca"] {
        let p = Plane::choose(choice.parse().unwrap(), &dictionary).unwrap();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        assert!((dot(&p.u, &p.u) - 1.0).abs() < 1e-12 && (dot(&p.v, &p.v) - 1.0).abs() < 1e-12 && dot(&p.u, &p.v).abs() < 1e-12);
        assert_eq!(p.origin, read(&dictionary.coder.b_dec).unwrap());
    }
    for wrong in ["latents:1", "random:x", "umap", "latents:1,2,3"] {
        assert!(wrong.parse::<PlaneChoice>().unwrap_err().to_string().contains("latents:I,J"), "{wrong}");
    }
    let chosen = |i, j| Plane::choose(PlaneChoice::Latents { i, j }, &dictionary);
    assert!(chosen(1, 1).unwrap_err().to_string().contains("parallel"));
    assert!(chosen(1, 30).unwrap_err().to_string().contains("below 30"));
    let relu = dictionary.clone().with_activation(Activation::Relu).unwrap();
    let plane = chosen(0, 1).unwrap();
    assert!(Slice::of(&relu, &plane).unwrap_err().to_string().contains("topk:K"));
    // Rows that spread along two axes only.
    let rows: Vec<f32> = (0..400).flat_map(|i| [0.1 * (i as f32).sin(), 3.0 * (i as f32 * 1.7).cos(), 1.0]).collect();
    let p = Plane::principal(vec![0.0; 3], &rows, "rows").unwrap();
    assert!(p.u[1].abs() > 0.999 && p.v[0].abs() > 0.999 && p.u[2].abs() < 1e-6);
}
