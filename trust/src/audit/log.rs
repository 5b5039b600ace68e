//! The Merkle tree over the log's records: hashes, incremental root, inclusion and consistency proofs.
//!
//! Pure: where nodes are stored is [`Nodes`]' business. A node is named by level and position; the one at (level, position)
//! covers the leaves from `position << level` on, `1 << level` of them, and exists once all of these do.
//! Source: RFC 9162 §2.1 (the same tree as RFC 6962 §2.1).

use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// A leaf's hash: of `0x00` and the record's bytes.
pub fn leaf_hash(record: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(record).finalize().into()
}

/// An inner node's hash: of `0x01` and both children.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// The right edge of a tree: enough to append and to know the root, in O(log n) memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// The roots of the perfect subtrees, largest first: one for each bit set in `size`.
    peaks: Vec<Hash>,
}

/// A node that an append completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the module says what level and position are")]
pub struct Node {
    pub level: u32,
    pub position: u64,
    pub hash: Hash,
}

impl Frontier {
    /// The right edge of a stored tree; none if a node of it is missing.
    pub fn of<N: Nodes>(nodes: &N, size: u64) -> Result<Self, N::Error> {
        let peaks = peaks(0, size).map(|(level, position)| nodes.node(level, position)).collect::<Result<_, _>>()?;
        Ok(Self { size, peaks })
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf and gives the inner nodes that it completes, lowest first.
    pub fn push(&mut self, leaf: Hash) -> Vec<Node> {
        let (mut hash, mut completed) = (leaf, Vec::new());
        let mut level = 0;
        while self.size >> level & 1 == 1
            && let Some(left) = self.peaks.pop()
        {
            hash = node_hash(&left, &hash);
            level += 1;
            completed.push(Node { level, position: self.size >> level, hash });
        }
        self.peaks.push(hash);
        self.size += 1;
        completed
    }

    /// The root over all leaves so far.
    pub fn root(&self) -> Hash {
        fold(&self.peaks).unwrap_or_else(empty_root)
    }
}

/// Where a tree's complete nodes are kept; level 0 are the leaf hashes.
pub trait Nodes {
    /// Why a node cannot be had.
    type Error;
    /// The hash of one complete node.
    fn node(&self, level: u32, position: u64) -> Result<Hash, Self::Error>;
}

/// The hashes that lead from leaf `index` to the root of the first `size` leaves; none if there is no such leaf.
pub fn inclusion_proof<N: Nodes>(nodes: &N, index: u64, size: u64) -> Result<Option<Vec<Hash>>, N::Error> {
    if index >= size {
        return Ok(None);
    }
    let (_, mut proof) = descend(nodes, index, size, |from, to| to - from == 1)?;
    proof.reverse();
    Ok(Some(proof))
}

/// The hashes that show that the first `old` leaves are still the first of `size`; none if `old` is 0 or beyond `size`.
pub fn consistency_proof<N: Nodes>(nodes: &N, old: u64, size: u64) -> Result<Option<Vec<Hash>>, N::Error> {
    if old == 0 || old > size {
        return Ok(None);
    }
    let (from, mut proof) = descend(nodes, old - 1, size, |_, to| to == old)?;
    if from != 0 {
        proof.push(subtree(nodes, from, old)?); // otherwise it is the old root, which the verifier has
    }
    proof.reverse();
    Ok(Some(proof))
}

/// Goes from the root down towards a leaf until `there`; gives where the subtree begins that was reached, and the hashes of
/// those beside the way, highest first.
fn descend<N: Nodes>(
    nodes: &N,
    leaf: u64,
    size: u64,
    there: impl Fn(u64, u64) -> bool,
) -> Result<(u64, Vec<Hash>), N::Error> {
    let (mut from, mut to, mut beside) = (0, size, Vec::new());
    while !there(from, to) {
        let middle = from + split(to - from);
        if leaf < middle {
            beside.push(subtree(nodes, middle, to)?);
            to = middle;
        } else {
            beside.push(subtree(nodes, from, middle)?);
            from = middle;
        }
    }
    Ok((from, beside))
}

/// Whether `proof` leads from a leaf's hash at `index` to `root` of a tree of `size` leaves. RFC 9162 §2.1.3.2.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let mut hash = *leaf;
    let whole = climb(index, size - 1, proof, |step, side| {
        hash = match side {
            Side::Left => node_hash(step, &hash),
            Side::Right => node_hash(&hash, step),
        }
    });
    whole && hash == *root
}

/// Whether `proof` shows that the tree of `size` leaves extends the one of `old` leaves. RFC 9162 §2.1.4.2.
pub fn verify_consistency(old: u64, size: u64, old_root: &Hash, root: &Hash, proof: &[Hash]) -> bool {
    if old == 0 || old > size {
        return false;
    }
    if old == size {
        return proof.is_empty() && old_root == root;
    }
    let (first, rest) = match proof {
        rest if old.is_power_of_two() => (old_root, rest),
        [first, rest @ ..] => (first, rest),
        [] => return false,
    };
    let (mut node, mut last) = (old - 1, size - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut old_hash, mut hash) = (*first, *first);
    let whole = climb(node, last, rest, |step, side| match side {
        Side::Left => (old_hash, hash) = (node_hash(step, &old_hash), node_hash(step, &hash)),
        Side::Right => hash = node_hash(&hash, step), // of the old tree it is no part
    });
    whole && old_hash == *old_root && hash == *root
}

/// On which side of the way up a proof's hash stands.
enum Side {
    Left,
    Right,
}

/// Goes from a node up to the root, a hash of the proof at each step; whether it gets there with the last one.
fn climb(mut node: u64, mut last: u64, proof: &[Hash], mut step: impl FnMut(&Hash, Side)) -> bool {
    for hash in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            step(hash, Side::Left);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            step(hash, Side::Right);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0
}

/// The largest power of two smaller than `leaves`, which is at least 2.
fn split(leaves: u64) -> u64 {
    1 << (u64::BITS - 1 - (leaves - 1).leading_zeros())
}

/// The perfect subtrees that make up the leaves `from..to` of a subtree that RFC 9162's splitting makes, largest first.
fn peaks(from: u64, to: u64) -> impl Iterator<Item = (u32, u64)> {
    let size = to - from;
    let levels = (0..u64::BITS).rev().filter(move |level| size >> level & 1 == 1);
    levels.scan(from, |start, level| {
        let position = *start >> level;
        *start += 1 << level;
        Some((level, position))
    })
}

fn subtree<N: Nodes>(nodes: &N, from: u64, to: u64) -> Result<Hash, N::Error> {
    let hashes = peaks(from, to).map(|(level, at)| nodes.node(level, at)).collect::<Result<Vec<_>, _>>()?;
    Ok(fold(&hashes).unwrap_or_else(empty_root))
}

/// The hash over perfect subtrees, largest first; none over none.
fn fold(peaks: &[Hash]) -> Option<Hash> {
    peaks.iter().rev().copied().reduce(|right, left| node_hash(&left, &right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::convert::Infallible;

    /// RFC 9162 §2.1.1 word for word: slow, and obviously right.
    fn naive_root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            _ => {
                let k = (0..).map(|n| 1usize << n).take_while(|k| *k < leaves.len()).last().unwrap();
                node_hash(&naive_root(&leaves[..k]), &naive_root(&leaves[k..]))
            }
        }
    }

    #[derive(Default)]
    struct Stored(HashMap<(u32, u64), Hash>);

    impl Nodes for Stored {
        type Error = Infallible;
        fn node(&self, level: u32, position: u64) -> Result<Hash, Infallible> {
            Ok(self.0[&(level, position)])
        }
    }

    fn tree(size: usize) -> (Vec<Hash>, Stored, Vec<Hash>) {
        let leaves: Vec<_> = (0..size).map(|n| leaf_hash(&n.to_le_bytes())).collect();
        let (mut frontier, mut stored, mut roots) = (Frontier::default(), Stored::default(), vec![empty_root()]);
        for (n, leaf) in leaves.iter().enumerate() {
            stored.0.insert((0, n as u64), *leaf);
            for node in frontier.push(*leaf) {
                assert!(stored.0.insert((node.level, node.position), node.hash).is_none(), "a node is completed once");
            }
            roots.push(frontier.root());
            assert_eq!(Frontier::of(&stored, n as u64 + 1), Ok(frontier.clone()));
        }
        (leaves, stored, roots)
    }

    #[test]
    fn known_hashes() {
        let hex = |hash: Hash| hash.iter().map(|b| format!("{b:02x}")).collect::<String>();
        // The empty string's SHA-256 and the empty leaf's hash stand in many RFC 6962 test suites.
        assert_eq!(hex(empty_root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hex(leaf_hash(b"")), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
    }

    #[test]
    fn incremental_roots_are_the_definitions_roots() {
        let (leaves, _, roots) = tree(130);
        for (size, root) in roots.iter().enumerate() {
            assert_eq!(*root, naive_root(&leaves[..size]), "size {size}");
        }
    }

    #[test]
    fn every_proof_of_every_small_tree_verifies() {
        let (leaves, stored, roots) = tree(40);
        for size in 1..=40u64 {
            let root = &roots[size as usize];
            for index in 0..size {
                let proof = inclusion_proof(&stored, index, size).unwrap().unwrap();
                assert!(verify_inclusion(&leaves[index as usize], index, size, &proof, root), "{index} in {size}");
                let old = index + 1;
                let proof = consistency_proof(&stored, old, size).unwrap().unwrap();
                assert!(verify_consistency(old, size, &roots[old as usize], root, &proof), "{old} to {size}");
            }
            assert_eq!(inclusion_proof(&stored, size, size), Ok(None));
            assert_eq!(consistency_proof(&stored, size + 1, size), Ok(None));
        }
        assert_eq!(consistency_proof(&stored, 0, 5), Ok(None));
    }

    proptest! {
        #[test]
        fn a_proof_proves_nothing_else(
            size in 1u64..200, index in any::<prop::sample::Index>(), other in any::<prop::sample::Index>(),
            bit in 0usize..256, at in any::<prop::sample::Index>(),
        ) {
            let (leaves, stored, roots) = tree(size as usize);
            let (index, other) = (index.index(size as usize) as u64, other.index(size as usize) as u64);
            let (leaf, root) = (leaves[index as usize], roots[size as usize]);
            let proof = inclusion_proof(&stored, index, size).unwrap().unwrap();
            prop_assert_eq!(verify_inclusion(&leaf, other, size, &proof, &root), index == other);
            prop_assert_eq!(verify_inclusion(&leaves[other as usize], index, size, &proof, &root), index == other);
            prop_assert!(!verify_inclusion(&leaf, index, size, &[proof.clone(), vec![leaf]].concat(), &root));
            let old = index + 1;
            let between = consistency_proof(&stored, old, size).unwrap().unwrap();
            prop_assert_eq!(verify_consistency(old, size, &roots[other as usize + 1], &root, &between), index == other);
            prop_assert!(!verify_consistency(old, size, &roots[old as usize], &root, &[between.clone(), vec![leaf]].concat()));
            let damaged = |proof: &[Hash]| {
                let mut flipped = proof.to_vec();
                if let Some(hash) = (!proof.is_empty()).then(|| &mut flipped[at.index(proof.len())]) {
                    hash[bit / 8] ^= 1 << (bit % 8);
                }
                let short = proof.split_last().map(|(_, rest)| rest.to_vec());
                short.into_iter().flat_map(move |short| [short, flipped.clone()])
            };
            for bad in damaged(&proof) {
                prop_assert!(!verify_inclusion(&leaf, index, size, &bad, &root));
            }
            for bad in damaged(&between) {
                prop_assert!(!verify_consistency(old, size, &roots[old as usize], &root, &bad));
            }
        }

        #[test]
        fn verifiers_take_any_input(index: u64, size: u64, proof in proptest::collection::vec(any::<Hash>(), 0..70)) {
            let hash = [0; 32];
            prop_assert!(!verify_inclusion(&hash, index, size, &proof, &[7; 32]) || proof.is_empty());
            prop_assert!(!verify_consistency(index, size, &hash, &[7; 32], &proof) || proof.is_empty());
        }
    }
}
