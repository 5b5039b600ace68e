//! Every change of a ledger is found, at its place: what someone does to the file, and what `verify` says to it.

use proptest::prelude::*;
use rusqlite::params;

use super::tests::{NAME, Node, exec};
use super::*;
use crate::audit::log::node_hash;
use crate::audit::tree_head::tests::TestSigner;
use crate::audit::{About, Audit};

impl Node {
    fn execute(&self, sql: &str, values: impl rusqlite::Params) {
        assert!(self.ledger.db.execute(sql, values).unwrap() > 0, "{sql} changes something");
    }

    /// What an attacker with the file but without the key would do: make all hashes fit the records again.
    fn cover_up(&self) {
        let db = &self.ledger.db;
        db.execute("DELETE FROM node", []).unwrap();
        let (size, mut frontier) = (self.ledger.size().unwrap(), Frontier::default());
        for position in 0..size {
            let leaf = leaf_hash(&self.column("body", position));
            self.execute(
                "UPDATE record SET leaf = ? WHERE position = ?",
                params![leaf.as_slice(), position.cast_signed()],
            );
            for node in frontier.push(leaf) {
                let row = params![node.level, node.position.cast_signed(), node.hash.as_slice()];
                db.execute("INSERT INTO node VALUES (?, ?, ?)", row).unwrap();
            }
        }
    }

    /// Moves the records from `from` on by `by` places.
    fn shift(&self, from: u64, by: i64) {
        let step = "UPDATE record SET position = -1 - (position + ?1) WHERE position >= ?2";
        self.ledger.db.execute(step, params![by, from.cast_signed()]).unwrap();
        self.ledger.db.execute("UPDATE record SET position = -1 - position WHERE position < 0", []).unwrap();
    }
}

/// Whether a finding lies at `position`, and no further from it than `within` records.
fn located(damage: &Damage, position: u64, within: u64) -> bool {
    match *damage {
        Damage::RecordAltered { position: at } | Damage::ColumnsAltered { position: at } => at == position,
        Damage::RecordsMissing { first, last }
        | Damage::NodeDiffers { first, last }
        | Damage::RootDiffers { first, last } => (first..=last).contains(&position) && last - first < within,
        Damage::Truncated { first, signed, .. } => (first..signed).contains(&position) && signed - first <= within,
        _ => false,
    }
}

#[test]
fn a_log_that_does_not_fit_its_head_is_not_continued() {
    for damage in ["DELETE FROM record WHERE position = 6", "UPDATE node SET hash = zeroblob(32) WHERE level = 2"] {
        let mut node = Node::filled(7, 7);
        node.execute(damage, []);
        node.spool().record(&About::default(), exec(9));
        assert!(matches!(node.drain(1), Err(LedgerError::Inconsistent(7))), "{damage}");
        assert!(node.ledger.seal(&node.signer, SystemTime::now()).is_err());
        assert_eq!(Inbox::at(&node.root()).list(10).unwrap().len(), 1, "the record goes on waiting");
    }
}

#[test]
fn a_rewritten_log_is_betrayed_by_a_head_kept_elsewhere() {
    let mut node = Node::filled(8, 4);
    let kept = node.ledger.newest_head().unwrap().unwrap();
    assert!(node.verify(std::slice::from_ref(&kept)).is_intact());
    // Whoever has file and key can do all this, and the file alone then looks whole.
    node.execute("DELETE FROM record WHERE position >= 5", []);
    node.execute("DELETE FROM tree_head WHERE size > 4", []);
    node.cover_up();
    node.ledger.seal(&node.signer, SystemTime::now()).unwrap();
    assert!(node.verify(&[]).is_intact());
    assert_eq!(node.verify(std::slice::from_ref(&kept)).damage, [Damage::Truncated { first: 5, size: 5, signed: 8 }]);
    let spool = node.spool();
    (0..4).for_each(|n| spool.record(&About::default(), exec(n)));
    node.drain(1).unwrap();
    assert!(node.verify(&[]).is_intact());
    assert_eq!(node.verify(std::slice::from_ref(&kept)).damage, [Damage::RootDiffers { first: 5, last: 7 }]);

    let stranger = SignedTreeHead::sign(8, [0; 32], &TestSigner::new(NAME, 2)).unwrap();
    let report = node.verify(&[stranger]);
    assert!(matches!(report.damage[..], [Damage::KeptHeadBad { .. }]), "{report:?}");
}

#[test]
fn a_position_that_is_none_is_named_and_costs_no_time() {
    let node = Node::filled(4, 4);
    node.execute("UPDATE record SET position = 9000000000000000000 WHERE position = 1", []);
    node.execute("UPDATE record SET position = -5 WHERE position = 0", []);
    let damage = node.verify(&[]).damage;
    assert_eq!(damage[0], Damage::RecordMisplaced { position: -5 });
    assert_eq!(damage[1], Damage::RecordsMissing { first: 0, last: 1 });
    assert!(damage.contains(&Damage::RecordMisplaced { position: 9_000_000_000_000_000_000 }), "{damage:?}");
}

#[test]
fn a_damaged_head_is_named() {
    let node = Node::filled(8, 4);
    node.execute("UPDATE tree_head SET note = replace(note, 'node-1', 'node-2') WHERE size = 4", []);
    node.execute("UPDATE tree_head SET size = 9 WHERE size = 8", []);
    let report = node.verify(&[]);
    assert!(
        matches!(report.damage[..], [Damage::HeadBad { size: 4, .. }, Damage::HeadBad { size: 9, .. }]),
        "{report:?}"
    );
    assert_eq!(report.sealed, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whoever changes the file, but does not hold the key, is found: at the record where its hash was left alone, between
    /// two heads where all hashes were made to fit.
    #[test]
    fn every_change_is_found_and_located(
        size in 2u64..24, every in 1u64..9, at in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), flip in 1u8..,
        change in 0..6, covered in any::<bool>(),
    ) {
        let node = Node::filled(size, every);
        prop_assert!(node.verify(&[]).is_intact());
        let kept = node.ledger.newest_head().unwrap().unwrap();
        let position = at.index(size as usize) as u64;
        let row = position.cast_signed();
        match change {
            0 | 1 => { // a flipped byte of the record, or of its stored hash
                let column = ["body", "leaf"][change as usize];
                let mut bytes = node.column(column, position);
                let byte = byte.index(bytes.len());
                bytes[byte] ^= flip;
                node.execute(&format!("UPDATE record SET {column} = ? WHERE position = ?"), params![bytes, row]);
            }
            2 => node.execute("DELETE FROM record WHERE position = ?", [row]), // removed, and a hole left
            3 => { // removed, and the others moved up
                node.execute("DELETE FROM record WHERE position = ?", [row]);
                node.shift(position, -1);
            }
            4 => { // a record inserted
                node.shift(position, 1);
                let body = node.column("body", if position > 0 { 0 } else { 1 });
                let insert = "INSERT INTO record SELECT ?1, producer, 1000 + sequence, time, event, sandbox, agent, destination, ?2, ?3 FROM record LIMIT 1";
                node.execute(insert, params![row, body, leaf_hash(&body).as_slice()]);
            }
            _ => { // two swapped
                let other = (position + 1) % size;
                for (from, to) in [(row, -1), (other.cast_signed(), row), (-1, other.cast_signed())] {
                    node.execute("UPDATE record SET position = ? WHERE position = ?", [to, from]);
                }
            }
        }
        if covered && change != 2 {
            node.cover_up();
        }
        // A flipped byte of a stored hash is undone by computing all hashes anew.
        let undone = covered && change == 1;
        let report = node.verify(std::slice::from_ref(&kept));
        prop_assert_eq!(report.is_intact(), undone, "{:?}", report);
        if !undone {
            let first = match change { 5 => position.min((position + 1) % size), _ => position };
            // Two records share a node; where that is gone, or a head lies between the two, all since the head before share the
            // later one.
            let head_between = first % 2 == 0 && (first + 1) % every == 0;
            let node_is_left = first | 1 < report.size && !head_between && (!covered || change == 2);
            let within = if node_is_left { 2 } else { every.max(2) };
            prop_assert!(report.damage.iter().any(|damage| located(damage, first, within)), "{:?}", report);
            if change < 2 && !covered {
                prop_assert_eq!(&report.damage, &[Damage::RecordAltered { position }]);
            }
        }
    }

    #[test]
    fn a_flipped_byte_of_a_node_is_found(size in 2u64..24, at in any::<prop::sample::Index>(), byte in 0usize..32, flip in 1u8..) {
        let node = Node::filled(size, size);
        let nodes: Vec<(i64, i64, Vec<u8>)> = {
            let mut all = node.ledger.db.prepare("SELECT level, position, hash FROM node").unwrap();
            all.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap().map(Result::unwrap).collect()
        };
        let (level, position, mut hash) = nodes[at.index(nodes.len())].clone();
        hash[byte] ^= flip;
        node.execute("UPDATE node SET hash = ? WHERE level = ? AND position = ?", params![hash, level, position]);
        let first = (position << level).cast_unsigned();
        let report = node.verify(&[]);
        prop_assert_eq!(report.damage, [Damage::NodeDiffers { first, last: first + (1 << level) - 1 }]);
    }
}

#[test]
fn node_hash_is_what_a_node_holds() {
    let node = Node::filled(2, 2);
    let leaf = |position| <Hash>::try_from(node.column("leaf", position)).unwrap();
    let stored: Vec<u8> = node.ledger.db.query_row("SELECT hash FROM node", [], |row| row.get(0)).unwrap();
    assert_eq!(stored, node_hash(&leaf(0), &leaf(1)));
}
