//! Our tables in the kernel: changing them as a whole, and reading them back. What a rule means is not known here.
//! Source: Linux `net/netfilter/nf_tables_api.c`.

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use nix::sys::socket::SockProtocol;

use super::netlink::{Message, Netlink};
use super::nf_tables::{self, Change, Family, kind};

/// The tables of the network namespace in which this was opened.
#[derive(Debug)]
pub struct Kernel(Netlink);

/// An entry of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The map's name.
    pub map: &'static str,
    /// What is looked up.
    pub key: Vec<u8>,
    /// The chain that it leads to.
    pub chain: String,
}

impl Kernel {
    /// Opens them.
    pub fn open() -> io::Result<Self> {
        Netlink::open(SockProtocol::NetlinkNetFilter).map(Self)
    }

    /// Makes all these changes at once, or none.
    pub fn commit(&self, changes: &[Change]) -> io::Result<()> {
        let (begin, end) = nf_tables::brackets();
        self.0.batch(begin, changes.iter().map(Change::encode).collect(), end)
    }

    /// Where these keys of these maps lead to, as far as they are there. Costs the same however much there is.
    pub fn entries_at(&self, keys: &[(&'static str, Vec<u8>)]) -> io::Result<Vec<Entry>> {
        let question = |(map, key): &(&'static str, Vec<u8>)| {
            nf_tables::message(kind::GET_ELEMENT, 0, Family::Inet, nf_tables::of_key(map, key))
        };
        let answers = self.all(keys.iter().map(question).collect())?;
        let entries = keys.iter().zip(answers).filter_map(|((map, _), answer)| {
            let (key, chain) = answer?.iter().flat_map(nf_tables::elements).next()?;
            Some(Entry { map, key, chain })
        });
        Ok(entries.collect())
    }

    /// What is in a map; nothing where there is no such map.
    pub fn entries(&self, map: &'static str) -> io::Result<Vec<Entry>> {
        let which = nf_tables::of_set(map);
        let answers = self.dump(kind::GET_ELEMENT, Family::Inet, which)?;
        let entries = answers.iter().flat_map(nf_tables::elements);
        Ok(entries.map(|(key, chain)| Entry { map, key, chain }).collect())
    }

    /// Whether one of these chains is there.
    pub fn any(&self, chains: &[(Family, String)]) -> io::Result<bool> {
        Ok(self.all(chains.iter().map(of_chain).collect())?.iter().any(Option::is_some))
    }

    /// Our tables of these families as [`Kernel::chains`] gives chains: a dormant one decides nothing.
    pub fn tables(&self, families: &[Family]) -> io::Result<Vec<Option<Vec<u8>>>> {
        let question = |family: &Family| nf_tables::message(kind::GET_TABLE, 0, *family, nf_tables::of_table());
        let tables = self.all(families.iter().map(question).collect())?;
        Ok(tables.into_iter().map(|table| table.map(|table| written(&table))).collect())
    }

    /// Chains with their rules, in bytes that say what each does and nothing else (no handles, no counts); `None` where there is
    /// no such chain.
    pub fn chains(&self, chains: &[(Family, String)]) -> io::Result<Vec<Option<Vec<u8>>>> {
        let found = self.all(chains.iter().map(of_chain).collect())?;
        let with_rules = |((family, name), chain): (&(Family, String), Option<Vec<Message>>)| {
            let Some(mut chain) = chain else { return Ok(None) };
            chain.extend(self.dump(kind::GET_RULE, *family, nf_tables::of_chain(2, name))?);
            Ok(Some(written(&chain)))
        };
        chains.iter().zip(found).map(with_rules).collect()
    }

    /// The answers to questions that are asked at once; none to one about what is not there.
    fn all(&self, questions: Vec<Message>) -> io::Result<Vec<Option<Vec<Message>>>> {
        self.0.ask_all(questions)?.into_iter().map(there).collect()
    }

    fn dump(&self, kind: u16, family: Family, which: Vec<u8>) -> io::Result<Vec<Message>> {
        there(self.0.ask(nf_tables::message(kind, NLM_F_DUMP, family, which))).map(Option::unwrap_or_default)
    }
}

fn of_chain((family, name): &(Family, String)) -> Message {
    nf_tables::message(kind::GET_CHAIN, 0, *family, nf_tables::of_chain(3, name))
}

fn there(answer: io::Result<Vec<Message>>) -> io::Result<Option<Vec<Message>>> {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}

fn written(messages: &[Message]) -> Vec<u8> {
    messages.iter().flat_map(nf_tables::canonical).collect()
}
