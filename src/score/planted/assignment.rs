//! One-to-one matching of the largest total weight: exactly, by shortest augmenting paths (Hungarian method in Jonker and Volgenant's
//! form), or greedily where that would take too long.

/// `few^2 many` above which the matching is greedy. Measured on random atoms, where paths are longest: 4096 x 16384 takes 2 s,
/// 8192 x 8192 takes 7 s, most of it the matching.
const EXACT_WORK: f64 = 1e12;

/// Is the matching of these sizes exact?
pub fn is_exact(rows: usize, columns: usize) -> bool {
    let (few, many) = (rows.min(columns) as f64, rows.max(columns) as f64);
    few * few * many <= EXACT_WORK
}

/// Matches as many rows with columns as the smaller side has. `weight` is row-major `[rows, columns]`, finite. Returns each row's column.
/// Exact where [`is_exact`] says so, else greedy: the heaviest pair first (ties: lower row, then lower column).
pub fn assign(weight: &[f32], rows: usize, columns: usize) -> Vec<Option<u32>> {
    let matcher = if is_exact(rows, columns) { exact } else { greedy };
    if rows <= columns {
        return matcher(weight, rows, columns).into_iter().map(Some).collect();
    }
    let mut turned = vec![0f32; weight.len()];
    for (r, line) in weight.chunks_exact(columns.max(1)).enumerate() {
        line.iter().enumerate().for_each(|(c, &w)| turned[c * rows + r] = w);
    }
    let mut matched = vec![None; rows];
    for (c, r) in matcher(&turned, columns, rows).into_iter().enumerate() {
        matched[r as usize] = Some(c as u32);
    }
    matched
}

/// Column of each row, `rows <= columns`. Duals in f64; cost is minus weight.
fn exact(weight: &[f32], rows: usize, columns: usize) -> Vec<u32> {
    const NONE: usize = usize::MAX;
    let cost = |r: usize, c: usize| -f64::from(weight[r * columns + c]);
    let (mut row_dual, mut column_dual) = (vec![0f64; rows], vec![0f64; columns]);
    let (mut row_of, mut column_of) = (vec![NONE; columns], vec![NONE; rows]);
    // A start that is feasible and often nearly done: every row at its cheapest column, unless that is taken.
    let mut left = Vec::new();
    for r in 0..rows {
        let mut best = 0;
        for c in 1..columns {
            if cost(r, c) < cost(r, best) {
                best = c;
            }
        }
        row_dual[r] = cost(r, best);
        if row_of[best] == NONE {
            row_of[best] = r;
            column_of[r] = best;
        } else {
            left.push(r);
        }
    }
    let (mut distance, mut from, mut done) = (vec![0f64; columns], vec![0usize; columns], vec![false; columns]);
    for start in left {
        // Dijkstra over columns with reduced costs, from `start` to the nearest free column.
        distance.fill(f64::INFINITY);
        done.fill(false);
        let (mut row, mut reached, mut visited) = (start, 0f64, Vec::new());
        let end = loop {
            let (mut next, mut nearest) = (NONE, f64::INFINITY);
            let base = reached - row_dual[row];
            let line = &weight[row * columns..(row + 1) * columns];
            for c in 0..columns {
                if done[c] {
                    continue;
                }
                let through = base - f64::from(line[c]) - column_dual[c];
                if through < distance[c] {
                    distance[c] = through;
                    from[c] = row;
                }
                // The lower column wins ties, but a free one ends the search.
                if distance[c] < nearest || (distance[c] == nearest && next != NONE && row_of[c] == NONE && row_of[next] != NONE) {
                    nearest = distance[c];
                    next = c;
                }
            }
            done[next] = true;
            reached = nearest;
            visited.push(next);
            if row_of[next] == NONE {
                break next;
            }
            row = row_of[next];
        };
        // Duals keep reduced costs at 0 on the tree and not negative elsewhere.
        row_dual[start] += reached;
        for &c in visited.iter().filter(|&&c| c != end) {
            let slack = reached - distance[c];
            column_dual[c] -= slack;
            row_dual[row_of[c]] += slack;
        }
        // Along the path each row takes the column it was reached through, and leaves its old one to the row before.
        let mut c = end;
        while c != NONE {
            let r = from[c];
            row_of[c] = r;
            c = std::mem::replace(&mut column_of[r], c);
        }
    }
    column_of.into_iter().map(|c| c as u32).collect()
}

/// The heaviest free pair again and again, `rows <= columns`.
fn greedy(weight: &[f32], rows: usize, columns: usize) -> Vec<u32> {
    let mut matched = vec![u32::MAX; rows];
    let mut taken = vec![false; columns];
    let best = |r: usize, taken: &[bool]| {
        let line = &weight[r * columns..(r + 1) * columns];
        let free = (0..columns).filter(|&c| !taken[c]);
        free.fold((0, f32::NEG_INFINITY), |best, c| if line[c] > best.1 { (c, line[c]) } else { best })
    };
    let mut heap: std::collections::BinaryHeap<(Ordered, std::cmp::Reverse<usize>, usize)> = std::collections::BinaryHeap::new();
    for r in 0..rows {
        let (c, w) = best(r, &taken);
        heap.push((Ordered(w), std::cmp::Reverse(r), c));
    }
    while let Some((_, std::cmp::Reverse(r), c)) = heap.pop() {
        if taken[c] {
            // Its favourite went to a heavier pair: it looks again.
            let (c, w) = best(r, &taken);
            heap.push((Ordered(w), std::cmp::Reverse(r), c));
        } else {
            taken[c] = true;
            matched[r] = c as u32;
        }
    }
    matched
}

/// f32 in its total order.
struct Ordered(f32);

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ordered {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn total(weight: &[f32], columns: usize, matched: &[Option<u32>]) -> f64 {
        matched.iter().enumerate().filter_map(|(r, c)| c.map(|c| f64::from(weight[r * columns + c as usize]))).sum()
    }

    /// The best total by trying every injection of rows into columns (or the other way round).
    fn brute(weight: &[f32], rows: usize, columns: usize, r: usize, used: &mut Vec<bool>, skips: usize) -> f64 {
        if r == rows {
            return 0.0;
        }
        let mut best = if skips > 0 { brute(weight, rows, columns, r + 1, used, skips - 1) } else { f64::NEG_INFINITY };
        for c in 0..columns {
            if !used[c] {
                used[c] = true;
                best = best.max(f64::from(weight[r * columns + c]) + brute(weight, rows, columns, r + 1, used, skips));
                used[c] = false;
            }
        }
        best
    }

    fn check(weight: &[f32], rows: usize, columns: usize) {
        let matched = assign(weight, rows, columns);
        let mut columns_used: Vec<u32> = matched.iter().flatten().copied().collect();
        assert_eq!(columns_used.len(), rows.min(columns));
        columns_used.sort_unstable();
        columns_used.dedup();
        assert_eq!(columns_used.len(), rows.min(columns), "a column twice");
        let best = brute(weight, rows, columns, 0, &mut vec![false; columns], rows.saturating_sub(columns));
        let found = total(weight, columns, &matched);
        assert!((found - best).abs() < 1e-5, "{rows} x {columns}: {found} {best}");
    }

    #[test]
    fn exact_equals_brute_force() {
        let mut rng = Rng::stream(0, "test", 0);
        for round in 0..400 {
            let (rows, columns) = (1 + rng.below(6) as usize, 1 + rng.below(6) as usize);
            // Many ties in every second round.
            let draw = |rng: &mut Rng| if round % 2 == 0 { rng.uniform() as f32 } else { rng.below(3) as f32 - 1.0 };
            let weight: Vec<f32> = (0..rows * columns).map(|_| draw(&mut rng)).collect();
            check(&weight, rows, columns);
        }
    }

    #[test]
    fn greedy_takes_the_heaviest_first() {
        // Greedy takes 10 and is left with 0; the best is 9 + 9.
        let weight = [10.0, 9.0, 9.0, 0.0];
        assert_eq!(greedy(&weight, 2, 2), [0, 1]);
        assert_eq!(exact(&weight, 2, 2), [1, 0]);
        let mut rng = Rng::stream(1, "test", 0);
        let weight: Vec<f32> = (0..40 * 60).map(|_| rng.uniform() as f32).collect();
        let of = |m: Vec<u32>| total(&weight, 60, &m.into_iter().map(Some).collect::<Vec<_>>());
        let (best, near) = (of(exact(&weight, 40, 60)), of(greedy(&weight, 40, 60)));
        assert!(near <= best + 1e-6 && near > 0.8 * best, "{near} {best}");
    }

    #[test]
    fn empty_sides_match_nothing() {
        assert!(assign(&[], 0, 4).is_empty());
        assert_eq!(assign(&[], 3, 0), [None, None, None]);
    }
}
