//! The numbers of nf_tables that are in use.
//! Source: Linux `include/uapi/linux/netfilter/nf_tables.h`, `nf_conntrack_common.h`.

/// Keys of `meta`.
pub mod meta {
    /// The mark, in the host's byte order.
    pub const MARK: u32 = 3;
    /// 2 is IPv4, 10 IPv6; one byte.
    pub const NFPROTO: u32 = 15;
    /// As in the IP header; one byte.
    pub const L4PROTO: u32 = 16;
}

/// Keys of `ct`, its bits and directions.
pub mod ct {
    /// Bits of [`STATE`](self); the host's byte order.
    pub const STATE: u32 = 0;
    /// One byte: 0 as the first packet went, 1 back.
    pub const DIRECTION: u32 = 1;
    /// Bits; the host's byte order.
    pub const STATUS: u32 = 2;
    /// A port, of any protocol that has some.
    pub const PROTO_SRC: u32 = 11;
    /// Does not match where the connection is not of IPv4.
    pub const SRC_IP: u32 = 19;
    /// Does not match where the connection is not of IPv6.
    pub const SRC_IP6: u32 = 21;
    /// As the first packet went.
    pub const ORIGINAL: u8 = 0;
    /// Back.
    pub const REPLY: u8 = 1;
    /// A state: fits no connection.
    pub const INVALID: u32 = 1;
    /// A state: seen both ways.
    pub const ESTABLISHED: u32 = 2;
    /// A state: an error about another connection.
    pub const RELATED: u32 = 4;
    /// A status: its destination was rewritten.
    pub const DST_NAT: u32 = 1 << 5;
}

/// Kinds of messages about nf_tables.
pub mod kind {
    /// Makes a table.
    pub const NEW_TABLE: u16 = 0;
    /// Asks for tables.
    pub const GET_TABLE: u16 = 1;
    /// Makes a chain.
    pub const NEW_CHAIN: u16 = 3;
    /// Asks for chains.
    pub const GET_CHAIN: u16 = 4;
    /// Removes a chain.
    pub const DEL_CHAIN: u16 = 5;
    /// Makes a rule.
    pub const NEW_RULE: u16 = 6;
    /// Asks for rules.
    pub const GET_RULE: u16 = 7;
    /// Removes rules.
    pub const DEL_RULE: u16 = 8;
    /// Makes a set or a map.
    pub const NEW_SET: u16 = 9;
    /// Puts elements into one.
    pub const NEW_ELEMENT: u16 = 12;
    /// Asks for elements.
    pub const GET_ELEMENT: u16 = 13;
    /// Takes elements out.
    pub const DEL_ELEMENT: u16 = 14;
}
