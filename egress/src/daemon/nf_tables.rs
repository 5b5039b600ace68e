//! What rules are made of, and how the kernel wants it written. Knows nothing of sandboxes. We write it ourselves because
//! nft(8) reads the whole table before it adds a rule to it: with 300 sandboxes that is 50 ms.
//! Source: Linux `include/uapi/linux/netfilter/nf_tables.h`.

use netlink_packet_core::{NLM_F_CREATE, NlasIterator};

use super::netlink::{Message, align};

mod numbers;
mod text;

pub use numbers::{ct, kind, meta};

/// The families of tables in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// The frames of a device.
    Netdev = 5,
}

/// What is loaded into the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// `meta`: key.
    Meta(u32),
    /// Of the connection: key.
    Ct(u32),
    /// Of the connection, seen from one side: key, direction.
    CtDir(u32, u8),
    /// Bytes of the frame: header, offset, length.
    Bytes(Header, u32, u32),
}

/// From where offsets count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Header {
    /// Ethernet, with the VLAN tag if there is one.
    Link = 0,
    /// IPv4, IPv6 or ARP.
    Network = 1,
    /// TCP, UDP or ICMP.
    Transport = 2,
}

/// One step of a rule. A rule is a list of them: the first that does not match ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Loads the register.
    Load(Load),
    /// Keeps these bits of the register.
    And(Vec<u8>),
    /// Matches if the register holds this.
    Is(Vec<u8>),
    /// Matches if it does not.
    IsNot(Vec<u8>),
    /// Matches if it lies between these, both included.
    Within(Vec<u8>, Vec<u8>),
    /// Goes where this map says.
    Map(&'static str),
    /// Marks the packet.
    Mark(u32),
    /// Matches at most so often a second, after a burst of the same size.
    Limit(u32),
    /// Tells the listeners of this group.
    Log(u16),
    /// Counts.
    Count,
    /// Answers with a TCP reset.
    Reset,
    /// Answers: administratively prohibited.
    Prohibit,
    /// Sends it to a port of ours.
    Redirect(u16),
    /// The end.
    Then(Verdict),
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes this chain's hook.
    Accept,
    /// It is gone.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Into a chain, and back after it.
    Jump(String),
    /// Into a chain, not back.
    Goto(String),
}

/// A rule.
pub type Rule = Vec<Step>;

/// Where a base chain is hooked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// The hook's number.
    pub number: u32,
    /// Lower comes first.
    pub priority: i32,
    /// On which device, in the netdev family.
    pub device: Option<String>,
    /// What becomes of packets that no rule decided on.
    pub accept: bool,
}

/// One change. A transaction is a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a table, unless it is there.
    Table(Family),
    /// Makes a map from keys (data type of nft(8), length in bytes) to verdicts, unless it is there.
    VerdictMap(&'static str, u32, u32),
    /// Makes a chain, unless it is there.
    Chain(Family, String, Option<Hook>),
    /// Takes all rules out of a chain.
    Flush(Family, String),
    /// Removes a chain without rules.
    DropChain(Family, String),
    /// Adds a rule at the end of a chain.
    Append(Family, String, Rule),
    /// Puts a key into a map.
    Put(&'static str, Vec<u8>, Verdict),
    /// Takes a key out of a map.
    Take(&'static str, Vec<u8>),
}

/// The name of our tables.
pub const TABLE: &str = "creto";

const SUBSYSTEM: u16 = 10;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const NESTED: u16 = 1 << 15;

/// A message about nf_tables with these attributes.
pub fn message(kind: u16, flags: u16, family: Family, attributes: Vec<u8>) -> Message {
    let mut payload = vec![family as u8, 0, 0, 0];
    payload.extend(attributes);
    Message { kind: SUBSYSTEM << 8 | kind, flags, payload }
}

/// What stands before and behind a transaction.
pub fn brackets() -> (Message, Message) {
    let bracket = |kind| {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        Message { kind, flags: 0, payload: vec![0, 0, high, low] }
    };
    (bracket(0x10), bracket(0x11))
}

impl Change {
    /// As the kernel reads it.
    pub fn encode(&self) -> Message {
        let new = |kind, family, attributes| message(kind, NLM_F_CREATE, family, attributes);
        let table = || text(1, TABLE);
        match self {
            Self::Table(family) => new(kind::NEW_TABLE, *family, [table(), int(2, 0)].concat()),
            Self::VerdictMap(name, key_type, length) => {
                const MAP: u32 = 8;
                let key = [int(4, *key_type), int(5, *length)].concat();
                let attributes = [table(), text(2, name), int(3, MAP), key, int(6, 0xffff_ff00), int(10, 1)];
                new(kind::NEW_SET, Family::Inet, attributes.concat())
            }
            Self::Chain(family, name, hook) => {
                let hook = hook.as_ref().map_or(vec![], Hook::encode);
                new(kind::NEW_CHAIN, *family, [table(), text(3, name), hook].concat())
            }
            Self::Flush(family, chain) => message(kind::DEL_RULE, 0, *family, [table(), text(2, chain)].concat()),
            Self::DropChain(family, chain) => message(kind::DEL_CHAIN, 0, *family, [table(), text(3, chain)].concat()),
            Self::Append(family, chain, rule) => {
                const APPEND: u16 = 0x800;
                let steps = rule.iter().flat_map(Step::encode).collect::<Vec<_>>();
                let attributes = [table(), text(2, chain), nest(4, &steps)].concat();
                message(kind::NEW_RULE, NLM_F_CREATE | APPEND, *family, attributes)
            }
            Self::Put(map, key, verdict) => {
                let element = [nest(1, &bytes(1, key)), nest(2, &verdict.encode())].concat();
                new(kind::NEW_ELEMENT, Family::Inet, of_map(map, &element))
            }
            Self::Take(map, key) => message(kind::DEL_ELEMENT, 0, Family::Inet, of_key(map, key)),
        }
    }
}

/// The attributes that name one key of a map.
pub fn of_key(map: &str, key: &[u8]) -> Vec<u8> {
    of_map(map, &nest(1, &bytes(1, key)))
}

fn of_map(map: &str, element: &[u8]) -> Vec<u8> {
    [text(1, TABLE), text(2, map), nest(3, &nest(1, element))].concat()
}

/// The attributes that name one chain: by which number its name goes depends on the kind of message.
pub fn of_chain(name_attribute: u16, chain: &str) -> Vec<u8> {
    [text(1, TABLE), text(name_attribute, chain)].concat()
}

impl Hook {
    fn encode(&self) -> Vec<u8> {
        let device = self.device.as_ref().map_or(vec![], |device| text(3, device));
        let hook = [int(1, self.number), int(2, self.priority as u32), device].concat();
        [nest(4, &hook), int(5, self.accept.into()), text(7, self.kind)].concat()
    }
}

impl Verdict {
    fn encode(&self) -> Vec<u8> {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5_i32, None),
        };
        let chain = chain.map_or(vec![], |chain| text(2, chain));
        nest(2, &[int(1, code as u32), chain].concat())
    }
}

impl Step {
    fn encode(&self) -> Vec<u8> {
        let one = |name, data: &[Vec<u8>]| nest(1, &[text(1, name), nest(2, &data.concat())].concat());
        let compare = |op, value: &[u8]| one("cmp", &[int(1, REGISTER), int(2, op), nest(3, &bytes(1, value))]);
        let immediate = |register, data: &[u8]| one("immediate", &[int(1, register), nest(2, data)]);
        match self {
            Self::Load(Load::Meta(key)) => one("meta", &[int(2, *key), int(1, REGISTER)]),
            Self::Load(Load::Ct(key)) => one("ct", &[int(2, *key), int(1, REGISTER)]),
            Self::Load(Load::CtDir(key, direction)) => {
                one("ct", &[int(2, *key), int(1, REGISTER), bytes(3, &[*direction])])
            }
            Self::Load(Load::Bytes(header, offset, length)) => {
                one("payload", &[int(1, REGISTER), int(2, *header as u32), int(3, *offset), int(4, *length)])
            }
            Self::And(mask) => {
                let (length, zero) = (mask.len() as u32, vec![0; mask.len()]);
                let data = [nest(4, &bytes(1, mask)), nest(5, &bytes(1, &zero))].concat();
                one("bitwise", &[int(1, REGISTER), int(2, REGISTER), int(3, length), data])
            }
            Self::Is(value) => compare(0, value),
            Self::IsNot(value) => compare(1, value),
            Self::Within(from, to) => {
                one("range", &[int(1, REGISTER), int(2, 0), nest(3, &bytes(1, from)), nest(4, &bytes(1, to))])
            }
            Self::Map(map) => one("lookup", &[text(1, map), int(2, REGISTER), int(3, VERDICT_REGISTER)]),
            Self::Mark(mark) => {
                let set = one("meta", &[int(2, meta::MARK), int(3, REGISTER)]);
                [immediate(REGISTER, &bytes(1, &mark.to_ne_bytes())), set].concat()
            }
            Self::Limit(rate) => {
                let (rate64, second) = (u64::from(*rate).to_be_bytes(), 1_u64.to_be_bytes());
                one("limit", &[bytes(1, &rate64), bytes(2, &second), int(3, *rate), int(4, 0), int(5, 0)])
            }
            Self::Log(group) => {
                const HEADERS: u32 = 128; // all that is read of a packet
                one("log", &[bytes(1, &group.to_be_bytes()), int(3, HEADERS)])
            }
            Self::Count => one("counter", &[]),
            Self::Reset => one("reject", &[int(1, 1), bytes(2, &[0])]),
            Self::Prohibit => one("reject", &[int(1, 2), bytes(2, &[3])]),
            Self::Redirect(port) => {
                [immediate(REGISTER, &bytes(1, &port.to_be_bytes())), one("redir", &[int(1, REGISTER)])].concat()
            }
            Self::Then(verdict) => immediate(VERDICT_REGISTER, &verdict.encode()),
        }
    }
}

/// An attribute.
fn bytes(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(align(attribute.len()), 0);
    attribute
}

fn nest(kind: u16, value: &[u8]) -> Vec<u8> {
    bytes(NESTED | kind, value)
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    bytes(kind, &[value.as_bytes(), &[0]].concat())
}

fn int(kind: u16, value: u32) -> Vec<u8> {
    bytes(kind, &value.to_be_bytes())
}

/// The attributes that name our table.
pub fn of_table() -> Vec<u8> {
    text(1, TABLE)
}

/// The attributes that name a map.
pub fn of_set(map: &str) -> Vec<u8> {
    [text(1, TABLE), text(2, map)].concat()
}

type Attributes = Vec<(u16, Vec<u8>)>;

fn attributes(message: &Message) -> Attributes {
    parse(message.payload.get(4..).unwrap_or_default())
}

fn parse(bytes: &[u8]) -> Attributes {
    NlasIterator::new(bytes).map_while(Result::ok).map(|one| (one.kind(), one.value().to_vec())).collect()
}

fn find(attributes: Attributes, wanted: u16) -> Option<Vec<u8>> {
    attributes.into_iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn name(value: Vec<u8>) -> Option<String> {
    String::from_utf8(value).ok().map(|name| name.trim_end_matches('\0').to_owned())
}

/// What a table, a chain or a rule that was read back does: without handles, uses and counts.
pub fn canonical(message: &Message) -> Vec<u8> {
    let mut kept = Vec::new();
    for (kind, value) in attributes(message) {
        match (message.kind & 0xff, kind) {
            (kind::NEW_TABLE | kind::NEW_RULE, 1 | 2) | (kind::NEW_CHAIN, 1 | 3 | 4 | 5 | 7 | 10) => {
                kept.extend(bytes(kind, &value));
            }
            (kind::NEW_RULE, 4) => kept.extend(bytes(kind, &steps_without_counts(&value))),
            _ => {}
        }
    }
    kept
}

fn steps_without_counts(steps: &[u8]) -> Vec<u8> {
    let counts = |step: &[u8]| parse(step).first().is_some_and(|(_, name)| name == b"counter\0");
    let kept = |(_, step): (u16, Vec<u8>)| if counts(&step) { bytes(1, b"counter") } else { bytes(1, &step) };
    parse(steps).into_iter().flat_map(kept).collect()
}

/// Keys, and the chains they lead to, of a map that was read back.
pub fn elements(message: &Message) -> Vec<(Vec<u8>, String)> {
    let entry = |(_, element): (u16, Vec<u8>)| {
        let key = find(parse(&find(parse(&element), 1)?), 1)?;
        let verdict = find(parse(&find(parse(&element), 2)?), 2)?;
        Some((key, find(parse(&verdict), 2).and_then(name)?))
    };
    let list = find(attributes(message), 3).unwrap_or_default();
    parse(&list).into_iter().filter_map(entry).collect()
}
