//! Addresses that are not just hosts of the Internet. Source: the IANA IPv4 and IPv6 Special-Purpose Address Registries (those
//! entries that are not globally reachable), RFC 6052 and 8215 (NAT64), 3056 (6to4), 4380 (Teredo), 2765 (SIIT), 4291 (v4-mapped,
//! v4-compatible), and where clouds serve their instances' credentials.
//!
//! Not here: ISATAP. It hides an IPv4 address in an interface identifier, below any prefix, but means something only to a host
//! that has an ISATAP interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::check::Reason;

/// What an address is, before any rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A host of the Internet.
    Public,
    /// Wants a rule with `allow_special`.
    Special,
    /// Wants a rule with `allow_special` for exactly this address.
    Metadata,
    /// No rule helps.
    Never(Reason),
}

/// What no rule opens. 198.18.0.0/15 is where our own DNS invents addresses. `::` and `::1` (in ::/96) leave no host.
pub(super) const NEVER: [(IpNet, Reason); 8] = [
    (v4(198, 18, 0, 0, 15), Reason::Special),
    (v6([0, 0, 0, 0, 0, 0], 96), Reason::Disguised),      // v4-compatible
    (v6([0, 0, 0, 0, 0, 0xffff], 96), Reason::Disguised), // v4-mapped
    (v6([0, 0, 0, 0, 0xffff, 0], 96), Reason::Disguised), // SIIT, v4-translated
    (v6([0x64, 0xff9b, 0, 0, 0, 0], 96), Reason::Disguised), // NAT64
    (v6([0x64, 0xff9b, 1, 0, 0, 0], 48), Reason::Disguised), // NAT64, local use
    (v6([0x2001, 0, 0, 0, 0, 0], 32), Reason::Disguised), // Teredo
    (v6([0x2002, 0, 0, 0, 0, 0], 16), Reason::Disguised), // 6to4
];

/// What a rule opens only with `allow_special`.
pub(super) const SPECIAL: [IpNet; 25] = [
    v4(0, 0, 0, 0, 8),                       // this network
    v4(10, 0, 0, 0, 8),                      // private
    v4(100, 64, 0, 0, 10),                   // carrier-grade NAT
    v4(127, 0, 0, 0, 8),                     // loopback
    v4(169, 254, 0, 0, 16),                  // link-local
    v4(172, 16, 0, 0, 12),                   // private
    v4(192, 0, 0, 0, 24),                    // IETF protocols
    v4(192, 0, 2, 0, 24),                    // documentation
    v4(192, 88, 99, 0, 24),                  // 6to4 relays
    v4(192, 168, 0, 0, 16),                  // private
    v4(198, 51, 100, 0, 24),                 // documentation
    v4(203, 0, 113, 0, 24),                  // documentation
    v4(224, 0, 0, 0, 4),                     // multicast
    v4(240, 0, 0, 0, 4),                     // reserved, and broadcast
    v6([0x100, 0, 0, 0, 0, 0], 64),          // discard
    v6([0x100, 0, 0, 1, 0, 0], 64),          // dummy
    v6([0x2001, 0, 0, 0, 0, 0], 23),         // IETF protocols
    v6([0x2001, 0xdb8, 0, 0, 0, 0], 32),     // documentation
    v6([0x3fff, 0, 0, 0, 0, 0], 20),         // documentation
    v6([0x5f00, 0, 0, 0, 0, 0], 16),         // segment routing
    v6([0xfc00, 0, 0, 0, 0, 0], 7),          // unique local
    v6([0xfe80, 0, 0, 0, 0, 0], 10),         // link-local
    v6([0xfec0, 0, 0, 0, 0, 0], 10),         // site-local
    v6([0xff00, 0, 0, 0, 0, 0], 8),          // multicast
    v6([0x64, 0xff9b, 0xffff, 0, 0, 0], 48), // reserved beside NAT64's
];

/// Where a cloud tells whoever asks its secrets.
pub(super) const METADATA: [IpNet; 11] = [
    v4(169, 254, 169, 254, 32), // AWS, Google, Azure, OpenStack, DigitalOcean, Oracle …
    v4(169, 254, 170, 2, 32),   // AWS ECS
    v4(169, 254, 170, 23, 32),  // AWS EKS
    v4(169, 254, 42, 42, 32),   // Scaleway
    v4(169, 254, 0, 23, 32),    // Tencent
    v4(100, 100, 100, 200, 32), // Alibaba
    v4(192, 0, 0, 192, 32),     // Oracle
    v4(168, 63, 129, 16, 32),   // Azure's wire server; not in any special range
    host([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), // AWS
    host([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]), // AWS EKS
    host([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]), // Google
];

/// The same by name. No zone opens these.
const METADATA_NAMES: [&str; 12] = [
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.azure.com",
    "metadata.azure.internal",
    "metadata.goog",
    "metadata.google.internal",
    "metadata.internal",
    "metadata.packet.net",
    "metadata.platformequinix.com",
    "metadata.tencentyun.com",
    "rancher-metadata",
];

/// Whether a name is a cloud's metadata service.
pub(super) fn is_metadata(name: &str) -> bool {
    METADATA_NAMES.contains(&name)
}

/// What an address is.
pub(super) fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_loopback() => return Kind::Never(Reason::Special),
        _ => {}
    }
    let within = |net: &IpNet| net.contains(&address);
    if let Some((_, why)) = NEVER.iter().find(|(net, _)| within(net)) {
        return Kind::Never(*why);
    }
    match (METADATA.iter().any(within), SPECIAL.iter().any(within)) {
        (true, _) => Kind::Metadata,
        (_, true) => Kind::Special,
        _ => Kind::Public,
    }
}

/// The IPv4 addresses that an IPv6 address carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// None.
    Nothing,
    /// One; or two, as Teredo has a server and a client.
    Addresses(Ipv4Addr, Option<Ipv4Addr>),
    /// One, but where in it only the local network's operator knows (RFC 8215).
    Somewhere,
}

/// Looks behind an IPv6 address.
pub(super) fn carried(address: Ipv6Addr) -> Carried {
    let s = address.segments();
    let at = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Carried::Nothing,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Carried::Addresses(at(high, low), None),
        [0x64, 0xff9b, 1, ..] => Carried::Somewhere,
        [0x2002, high, low, ..] => Carried::Addresses(at(high, low), None),
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            Carried::Addresses(at(high, low), Some(at(!client_high, !client_low))) // the client's is inverted
        }
        _ => Carried::Nothing,
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(start: [u16; 6], length: u8) -> IpNet {
    let [a, b, c, d, e, f] = start;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, 0, 0), length))
}

const fn host(all: [u16; 8]) -> IpNet {
    let [a, b, c, d, e, f, g, h] = all;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_known_for_what_it_is() {
        let disguised = Kind::Never(Reason::Disguised);
        let never = Kind::Never(Reason::Special);
        for (address, expected) in [
            ("1.1.1.1", Kind::Public),
            ("172.15.255.255", Kind::Public),
            ("172.32.0.0", Kind::Public),
            ("100.63.255.255", Kind::Public),
            ("2606:4700::1111", Kind::Public),
            ("2001:200::1", Kind::Public),
            ("0.0.0.0", Kind::Special),
            ("10.255.255.255", Kind::Special),
            ("100.127.255.255", Kind::Special),
            ("127.0.0.1", Kind::Special),
            ("169.254.1.1", Kind::Special),
            ("172.31.255.255", Kind::Special),
            ("192.168.0.1", Kind::Special),
            ("224.0.0.1", Kind::Special),
            ("255.255.255.255", Kind::Special),
            ("fe80::1", Kind::Special),
            ("fd12::1", Kind::Special),
            ("fec0::1", Kind::Special),
            ("ff02::1", Kind::Special),
            ("2001:db8::1", Kind::Special),
            ("100::1", Kind::Special),
            ("169.254.169.254", Kind::Metadata),
            ("168.63.129.16", Kind::Metadata),
            ("100.100.100.200", Kind::Metadata),
            ("fd00:ec2::254", Kind::Metadata),
            ("198.18.0.1", never),
            ("198.19.255.255", never),
            ("::", never),
            ("::1", never),
            ("::2", disguised),
            ("::10.0.0.1", disguised),
            ("::ffff:1.1.1.1", disguised),
            ("::ffff:0:1.1.1.1", disguised),
            ("64:ff9b::1.1.1.1", disguised),
            ("64:ff9b:1:fffe::1", disguised),
            ("2001:0:4136:e378::1", disguised),
            ("2002:a00:1::", disguised),
        ] {
            assert_eq!(kind(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn an_ipv4_address_is_found_in_every_disguise() {
        let one = |text: &str| Carried::Addresses(text.parse().unwrap(), None);
        for (address, expected) in [
            ("2606:4700::1111", Carried::Nothing),
            ("::1", Carried::Nothing),
            ("::10.1.2.3", one("10.1.2.3")),
            ("::ffff:169.254.169.254", one("169.254.169.254")),
            ("::ffff:0:10.1.2.3", one("10.1.2.3")),
            ("64:ff9b::a9fe:a9fe", one("169.254.169.254")),
            ("64:ff9b:1::a01:203", Carried::Somewhere),
            ("2002:a01:203::1", one("10.1.2.3")),
            // The example of RFC 4380 §4 in spirit: server 65.54.227.120, client 192.0.2.45.
            (
                "2001:0:4136:e378:8000:63bf:3fff:fdd2",
                Carried::Addresses(Ipv4Addr::new(65, 54, 227, 120), Some(Ipv4Addr::new(192, 0, 2, 45))),
            ),
        ] {
            assert_eq!(carried(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn what_carries_an_ipv4_address_is_never_a_host() {
        for (net, _) in NEVER.iter().filter(|(_, why)| *why == Reason::Disguised) {
            let IpAddr::V6(base) = net.network() else { continue };
            let carrier = Ipv6Addr::from(u128::from(base) | 0x1234_5678);
            assert_ne!(carried(carrier), Carried::Nothing, "{net}");
            assert_eq!(kind(carrier.into()), Kind::Never(Reason::Disguised), "{net}");
        }
    }
}
