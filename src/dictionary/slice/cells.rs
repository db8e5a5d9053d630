//! Walks from cell to cell.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::{at, Slice};

/// Nearest rivals that cut a cell first, so that what is left to compare with all others is small.
const FIRST: usize = 48;

/// Points of a grid from which the walk starts, per side: more than one, so that a degenerate start cannot end it.
const STARTS: usize = 7;

/// Cells below this share of the box are rounding.
const LEAST: f64 = 1e-13;

/// A cell: where one set of latents is active.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Active latents, ascending; at most K.
    pub latents: Vec<u32>,
    /// Corners of a convex polygon, in order around it.
    pub corners: Vec<(f64, f64)>,
    /// Its area.
    pub area: f64,
    /// Cells with which it shares an edge, by index, ascending.
    pub neighbours: Vec<usize>,
}

/// The cells of a box around the origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Cells {
    /// The box reaches from -half to half in both directions.
    pub half: f64,
    /// From the middle outwards.
    pub cells: Vec<Cell>,
    /// Were there no more?
    pub is_complete: bool,
}

impl Cells {
    /// Share of the box that the cells cover.
    pub fn share(&self) -> f64 {
        self.cells.iter().map(|c| c.area).sum::<f64>() / (4.0 * self.half * self.half)
    }
}

/// What is beyond an edge.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Beyond {
    /// The end of the box.
    Outside,
    /// The same set with the first for the second; `None` is a dummy.
    Swap(Option<u32>, Option<u32>),
}

/// A corner, and the edge from it to the next.
#[derive(Debug, Clone, Copy)]
struct Corner {
    p: (f64, f64),
    beyond: Beyond,
}

/// A set to visit, with a point that is in it (or on its edge).
struct Visit {
    id: usize,
    set: Vec<u32>,
    p: (f64, f64),
}

/// Sets by distance from the middle, then as they came.
struct Queue {
    heap: BinaryHeap<Reverse<(u64, usize)>>,
    waiting: HashMap<usize, Visit>,
    seen: HashMap<Vec<u32>, usize>,
}

impl Queue {
    /// The set's number, new or old.
    fn push(&mut self, set: Vec<u32>, p: (f64, f64)) -> usize {
        if let Some(&id) = self.seen.get(&set) {
            return id;
        }
        let id = self.seen.len();
        self.seen.insert(set.clone(), id);
        // Bits of floats that are not negative are in their order.
        self.heap.push(Reverse((p.0.hypot(p.1).to_bits(), id)));
        self.waiting.insert(id, Visit { id, set, p });
        id
    }

    fn pop(&mut self) -> Option<Visit> {
        let Reverse((_, id)) = self.heap.pop()?;
        self.waiting.remove(&id)
    }
}

impl Slice {
    /// The cells of the box `[-half, half]²`, from its middle outwards, `max_cells` at most. Deterministic.
    ///
    /// A cell costs about `d_sae` times its corners; there can be of the order of `K d_sae` of them.
    pub fn cells(&self, half: f64, max_cells: usize) -> Cells {
        let mut queue = Queue { heap: BinaryHeap::new(), waiting: HashMap::new(), seen: HashMap::new() };
        // Off the symmetric places, where lines like to meet.
        let middle = (1.370_35e-6 * half, -2.706_71e-6 * half);
        queue.push(self.active(middle.0, middle.1), middle);
        for i in 0..STARTS * STARTS {
            let place = |i: usize, off: f64| half * ((2 * i + 1) as f64 / STARTS as f64 - 1.0 + off / STARTS as f64);
            let p = (place(i % STARTS, 0.137_035), place(i / STARTS, -0.270_671));
            queue.push(self.active(p.0, p.1), p);
        }
        let mut found: Vec<(usize, Cell, Vec<usize>)> = Vec::new();
        let mut scratch = Scratch::default();
        let mut is_complete = true;
        while let Some(visit) = queue.pop() {
            if found.len() == max_cells {
                is_complete = false;
                break;
            }
            let Some((corners, area)) = self.cell(&visit, half, &mut scratch) else {
                // Several swaps at one edge (equal latents) lead to a set without a cell: ask which set is there.
                queue.push(self.active(visit.p.0, visit.p.1), visit.p);
                continue;
            };
            let mut neighbours = Vec::new();
            for (a, b) in corners.iter().zip(corners.iter().cycle().skip(1)) {
                let Beyond::Swap(leaves, enters) = a.beyond else { continue };
                let (dx, dy) = (b.p.0 - a.p.0, b.p.1 - a.p.1);
                let length = dx.hypot(dy);
                if length < 1e-11 * half {
                    continue;
                }
                let mut set: Vec<u32> = visit.set.iter().copied().filter(|l| Some(*l) != leaves).chain(enters).collect();
                set.sort_unstable();
                // Corners turn left, so that outside is to the right of an edge.
                let step = 1e-9 * half / length;
                let p = (0.5 * (a.p.0 + b.p.0) + step * dy, 0.5 * (a.p.1 + b.p.1) - step * dx);
                neighbours.push(queue.push(set, p));
            }
            let corners = corners.iter().map(|c| c.p).collect();
            found.push((visit.id, Cell { latents: visit.set, corners, area, neighbours: Vec::new() }, neighbours));
        }
        let place: HashMap<usize, usize> = found.iter().enumerate().map(|(i, f)| (f.0, i)).collect();
        let cells = found
            .into_iter()
            .map(|(_, mut cell, ids)| {
                cell.neighbours = ids.iter().filter_map(|id| place.get(id).copied()).collect();
                cell.neighbours.sort_unstable();
                cell.neighbours.dedup();
                cell
            })
            .collect();
        Cells { half, cells, is_complete }
    }

    /// Corners and area of a set's cell; `None` where it has none.
    fn cell(&self, visit: &Visit, half: f64, scratch: &mut Scratch) -> Option<(Vec<Corner>, f64)> {
        let set = &visit.set;
        let has_dummy = set.len() < self.k;
        let is_in = |j: u32| set.binary_search(&j).is_ok();
        let mut cell = Polygon::of_box(half);
        for &i in set {
            cell.clip(self.lines[i as usize], Beyond::Swap(Some(i), None), false, scratch)?;
        }
        let rivals = (0..self.lines.len() as u32).filter(|&j| !is_in(j));
        // Those that are strongest near the cell cut away most.
        let mut near: Vec<(f64, u32)> = rivals.clone().map(|j| (at(&self.lines[j as usize], visit.p), j)).collect();
        let stronger = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if near.len() > FIRST {
            near.select_nth_unstable_by(FIRST, stronger);
            near.truncate(FIRST);
        }
        near.sort_unstable_by(stronger);
        let mut floor = self.floor(&cell, set, has_dummy);
        for j in near.into_iter().map(|n| n.1).chain(rivals) {
            let line = &self.lines[j as usize];
            // A rival that is below the weakest member at every corner is below it everywhere: the difference is convex.
            if cell.corners.iter().zip(&floor).all(|(c, floor)| at(line, c.p) < *floor) {
                continue;
            }
            if has_dummy {
                cell.clip([-line[0], -line[1], -line[2]], Beyond::Swap(None, Some(j)), true, scratch)?;
            } else {
                for &i in set {
                    let l = &self.lines[i as usize];
                    let above = [l[0] - line[0], l[1] - line[1], l[2] - line[2]];
                    cell.clip(above, Beyond::Swap(Some(i), Some(j)), i < j, scratch)?;
                }
            }
            floor = self.floor(&cell, set, has_dummy);
        }
        let area = cell.area();
        (area > LEAST * 4.0 * half * half).then_some((cell.corners, area))
    }

    /// The weakest member's value at each corner.
    fn floor(&self, cell: &Polygon, set: &[u32], has_dummy: bool) -> Vec<f64> {
        let weakest = |c: &Corner| set.iter().map(|&i| at(&self.lines[i as usize], c.p)).fold(f64::INFINITY, f64::min);
        // A dummy in the set is the weakest member: the others are not negative in the cell.
        cell.corners.iter().map(|c| if has_dummy { 0.0 } else { weakest(c) }).collect()
    }
}

/// Buffers of [`Polygon::clip`].
#[derive(Default)]
struct Scratch {
    values: Vec<f64>,
    corners: Vec<Corner>,
}

/// A convex polygon, counter-clockwise.
struct Polygon {
    half: f64,
    corners: Vec<Corner>,
}

impl Polygon {
    fn of_box(half: f64) -> Self {
        let corner = |x: f64, y: f64| Corner { p: (x * half, y * half), beyond: Beyond::Outside };
        Self { half, corners: vec![corner(-1.0, -1.0), corner(1.0, -1.0), corner(1.0, 1.0), corner(-1.0, 1.0)] }
    }

    /// Keeps where `line` is not negative; `None` when nothing of any area is left. `keeps_ties`: is the cell this side's where the line is 0
    /// all over (two latents are equal)?
    fn clip(&mut self, line: [f64; 3], beyond: Beyond, keeps_ties: bool, scratch: &mut Scratch) -> Option<()> {
        let (values, corners) = (&mut scratch.values, &mut scratch.corners);
        // Corners that lie on the line, up to rounding, belong to both sides and are not cut again.
        let on = 1e-13 * ((line[0].abs() + line[1].abs()) * self.half + line[2].abs());
        values.clear();
        values.extend(self.corners.iter().map(|c| at(&line, c.p)));
        if values.iter().all(|v| *v >= -on) {
            return (keeps_ties || values.iter().any(|v| *v > on)).then_some(());
        }
        if values.iter().all(|v| *v <= on) {
            return None;
        }
        corners.clear();
        for i in 0..values.len() {
            let next = (i + 1) % values.len();
            let (from, to, a, b) = (self.corners[i], self.corners[next], values[i], values[next]);
            let crossing = || {
                let share = a / (a - b);
                (from.p.0 + share * (to.p.0 - from.p.0), from.p.1 + share * (to.p.1 - from.p.1))
            };
            if a > on {
                corners.push(from);
                if b < -on {
                    corners.push(Corner { p: crossing(), beyond });
                }
            } else if a >= -on {
                corners.push(if b < -on { Corner { p: from.p, beyond } } else { from });
            } else if b > on {
                corners.push(Corner { p: crossing(), beyond: from.beyond });
            }
        }
        std::mem::swap(&mut self.corners, corners);
        (self.corners.len() > 2).then_some(())
    }

    fn area(&self) -> f64 {
        let next = self.corners.iter().cycle().skip(1);
        0.5 * self.corners.iter().zip(next).map(|(a, b)| a.p.0 * b.p.1 - b.p.0 * a.p.1).sum::<f64>()
    }
}
