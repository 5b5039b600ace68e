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

    /// Where a key of a map leads to, if it is there. Costs the same however much there is.
    pub fn entry(&self, map: &'static str, key: &[u8]) -> io::Result<Option<Entry>> {
        let answers = self.one(nf_tables::message(kind::GET_ELEMENT, 0, Family::Inet, nf_tables::of_key(map, key)))?;
        let found = answers.iter().flatten().flat_map(nf_tables::elements).next();
        Ok(found.map(|(key, chain)| Entry { map, key, chain }))
    }

    /// What is in a map; nothing where there is no such map.
    pub fn entries(&self, map: &'static str) -> io::Result<Vec<Entry>> {
        let which = nf_tables::of_set(map);
        let answers = self.dump(kind::GET_ELEMENT, Family::Inet, which)?;
        let entries = answers.iter().flat_map(nf_tables::elements);
        Ok(entries.map(|(key, chain)| Entry { map, key, chain }).collect())
    }

    /// The names of all chains of our table of a family.
    pub fn chains(&self, family: Family) -> io::Result<Vec<String>> {
        let answers = self.dump(kind::GET_CHAIN, family, vec![])?;
        Ok(answers.iter().filter_map(nf_tables::chain_name).collect())
    }

    /// Our table of a family as [`Kernel::chain`] gives a chain: a dormant one decides nothing.
    pub fn table(&self, family: Family) -> io::Result<Option<Vec<u8>>> {
        self.one(nf_tables::message(kind::GET_TABLE, 0, family, nf_tables::of_table())).map(written)
    }

    /// A chain with its rules, in bytes that say what it does and nothing else (no handles, no counts); `None` where there is
    /// no such chain.
    pub fn chain(&self, family: Family, name: &str) -> io::Result<Option<Vec<u8>>> {
        let chain = self.one(nf_tables::message(kind::GET_CHAIN, 0, family, nf_tables::of_chain(3, name)))?;
        let Some(mut chain) = chain else { return Ok(None) };
        chain.extend(self.dump(kind::GET_RULE, family, nf_tables::of_chain(2, name))?);
        Ok(written(Some(chain)))
    }

    fn one(&self, question: Message) -> io::Result<Option<Vec<Message>>> {
        match self.0.ask(question) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            answers => answers.map(Some),
        }
    }

    fn dump(&self, kind: u16, family: Family, which: Vec<u8>) -> io::Result<Vec<Message>> {
        self.one(nf_tables::message(kind, NLM_F_DUMP, family, which)).map(Option::unwrap_or_default)
    }
}

fn written(messages: Option<Vec<Message>>) -> Option<Vec<u8>> {
    messages.map(|messages| messages.iter().flat_map(nf_tables::canonical).collect())
}
