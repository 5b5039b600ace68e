//! Where a rule points, as it is written: a name, `*.zone`, an address or a network in CIDR form. What no policy may open is
//! refused here, so that no rule can even name it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::model::Destination;
use super::name::{BadName, Fqdn};
use super::special;

/// Why a text is no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDestination {
    /// `*`, `*.`.
    #[error("`*` would be the whole Internet: name hosts, zones (*.example.com) or networks")]
    Everything,
    /// A zone in which anyone can take a name.
    #[error("*.{0} is open to whoever takes a name below it (public suffix list): name a zone of one owner")]
    PublicSuffix(Fqdn),
    /// A cloud's metadata service, by name.
    #[error(
        "{0} is a cloud's metadata service, which no name opens: if it must be, give its address and allow_special"
    )]
    Metadata(Fqdn),
    /// A network with bits beyond its length.
    #[error("{given} has bits beyond its prefix: write {fix} for the network, or {address} for the one address")]
    HostBits {
        /// As it was given.
        given: IpNet,
        /// The network.
        fix: IpNet,
        /// The address.
        address: IpAddr,
    },
    /// Something with a slash that is no network.
    #[error("{0:?} is no network: write one as 192.0.2.0/24 or 2001:db8::/32")]
    Network(String),
    /// Neither an address nor a name.
    #[error(transparent)]
    Name(#[from] BadName),
}

impl std::str::FromStr for Destination {
    type Err = BadDestination;

    fn from_str(text: &str) -> Result<Self, BadDestination> {
        if let Some(zone) = text.strip_prefix("*.") {
            if zone.is_empty() {
                return Err(BadDestination::Everything);
            }
            return zone_of(Fqdn::parse(zone)?);
        }
        if text == "*" {
            return Err(BadDestination::Everything);
        }
        if text.contains('/') {
            return network(text);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.into()));
        }
        let name = Fqdn::parse(text)?;
        if special::is_metadata(name.as_str()) { Err(BadDestination::Metadata(name)) } else { Ok(Self::Name(name)) }
    }
}

/// A top-level domain that the list does not know is taken for a public suffix, as the list itself says.
fn zone_of(zone: Fqdn) -> Result<Destination, BadDestination> {
    if psl::suffix_str(zone.as_str()).is_none_or(|suffix| suffix == zone.as_str()) {
        return Err(BadDestination::PublicSuffix(zone));
    }
    if special::is_metadata(zone.as_str()) { Err(BadDestination::Metadata(zone)) } else { Ok(Destination::Zone(zone)) }
}

/// `ipnet` itself reads `010.0.0.0` as 10.0.0.0, which is 8.0.0.0 to others: addresses are read by the standard library.
fn network(text: &str) -> Result<Destination, BadDestination> {
    let bad = || BadDestination::Network(text.chars().take(80).collect());
    let (address, length) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let length: u8 = length.parse().ok().filter(|number: &u8| number.to_string() == length).ok_or_else(bad)?;
    let given = IpNet::new(address, length).map_err(|_| bad())?;
    match given.trunc() {
        fix if fix == given => Ok(Destination::Net(given)),
        fix => Err(BadDestination::HostBits { given, fix, address }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_name_a_zone_or_a_network() {
        for (text, printed) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com.", "example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("*.example.com", "*.example.com"),
            ("*.Bücher.example", "*.xn--bcher-kva.example"),
            ("*.example.github.io", "*.example.github.io"),
            ("com", "com"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:DB8::", "2001:db8::"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
        ] {
            let destination: Destination = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(destination.to_string(), printed, "{text}");
            assert_eq!(printed.parse(), Ok(destination), "{text}");
        }
    }

    #[test]
    fn what_no_rule_may_open_is_no_destination() {
        for (text, why) in [
            ("*", "whole Internet"),
            ("*.", "whole Internet"),
            ("*.com", "public suffix"),
            ("*.co.uk", "public suffix"),
            ("*.github.io", "public suffix"),
            ("*.s3.amazonaws.com", "public suffix"),
            ("*.xn--p1ai", "public suffix"),
            ("*.рф", "public suffix"),
            ("*.ck", "public suffix"),
            ("*.foo.ck", "public suffix"),
            ("*.internal", "public suffix"),
            ("*.*.example.com", "first label"),
            ("a.*.example.com", "first label"),
            ("*example.com", "first label"),
            ("*.10.0.0.1", "number"),
            ("metadata.google.internal", "metadata"),
            ("METADATA.google.internal.", "metadata"),
            ("*.metadata.google.internal", "metadata"),
            ("metadata", "metadata"),
            ("instance-data", "metadata"),
            ("10.0.0.1/8", "write 10.0.0.0/8"),
            ("10.0.0.1/8", "or 10.0.0.1 "),
            ("2001:db8::1/32", "write 2001:db8::/32"),
            ("10.0.0.0/33", "no network"),
            ("10.0.0.0/", "no network"),
            ("10.0.0.0/255.0.0.0", "no network"),
            ("10/8", "no network"),
            ("010.0.0.0/8", "no network"),
            ("10.0.0.0/+8", "no network"),
            ("10.0.0.0/08", "no network"),
            ("10.0.0.0/8/8", "no network"),
            ("example.com/24", "no network"),
            ("https://example.com", "no network"),
            ("0x7f.1", "number"),
            ("127.1", "number"),
            ("0177.0.0.1", "number"),
            ("2130706433", "number"),
            ("1.2.3.4.", "number"),
            ("192.0.2.1:443", "ports"),
            ("[2001:db8::1]", "brackets"),
            ("fe80::1%eth0", "zone ids"),
            ("fe80::%1/10", "no network"),
            ("xn--zzzzzzzzz99999.com", "IDNA"),
            ("", "empty"),
            (" example.com", "character"),
        ] {
            let error = text.parse::<Destination>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
