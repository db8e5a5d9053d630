//! Trees of features: roots first, then level by level, so that siblings stand together and parents before children.

use std::ops::Range;

/// Parents and children of a forest.
#[derive(Debug, Clone, Default)]
pub(super) struct Forest {
    /// `[n]`.
    pub(super) parents: Vec<Option<u32>>,
    /// `[n]`; empty for leaves.
    pub(super) children: Vec<Range<usize>>,
}

impl Forest {
    /// `roots` trees of `depth` levels below the root, each inner node with `branching` children.
    pub(super) fn new(roots: usize, branching: usize, depth: usize) -> Self {
        let mut forest = Self { parents: vec![None; roots], children: Vec::new() };
        let mut level = 0..roots;
        for _ in 0..depth {
            let next = level.end..level.end + level.len() * branching;
            for parent in level {
                let first = forest.parents.len();
                forest.parents.extend(std::iter::repeat_n(Some(parent as u32), branching));
                forest.children.push(first..first + branching);
            }
            level = next;
        }
        forest.children.resize(forest.parents.len(), 0..0);
        forest
    }

    /// How many features that would be; `None` when it overflows.
    pub(super) fn count(roots: usize, branching: usize, depth: usize) -> Option<usize> {
        let (mut level, mut total) = (roots, roots);
        for _ in 0..depth {
            level = level.checked_mul(branching)?;
            total = total.checked_add(level)?;
        }
        Some(total)
    }
}
