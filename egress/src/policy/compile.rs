//! A policy made ready to decide: each destination once, with its ports cut into pieces of one deciding rule, and a way from
//! it to the next less specific destination. To decide is one look for the most specific destination and then a walk along
//! that way; nothing is allocated.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{Destination, Policy, Protocol, Rule};
use super::name::Fqdn;

/// A rule, by its place in the policy.
pub(super) type RuleAt = u32;
/// A destination, by its place in `Compiled::places`.
type PlaceAt = u32;

/// What `check` reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Compiled {
    places: Vec<Place>,
    names: HashMap<Box<str>, Named>,
    /// No zone's text is longer, in bytes.
    longest_zone: usize,
    v4: Ranges,
    v6: Ranges,
}

/// One destination.
#[derive(Clone, Debug, Default)]
struct Place {
    tcp: Pieces,
    udp: Pieces,
    /// The next less specific destination that contains it.
    within: Option<PlaceAt>,
    /// Names only: the rule by which the mildest of its ports is decided over TCP; none if that is decided by none.
    mildest: Option<RuleAt>,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, Default)]
struct Named {
    itself: Option<PlaceAt>,
    below: Option<PlaceAt>,
}

/// Ports and who decides on them: disjoint, ascending.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces(Box<[Piece]>);

#[derive(Clone, Copy, Debug)]
struct Piece {
    first: u16,
    last: u16,
    rule: RuleAt,
}

/// From which address on which destination is the most specific; ascending, of one address family.
#[derive(Clone, Debug, Default)]
struct Ranges {
    starts: Box<[u128]>,
    places: Box<[Option<PlaceAt>]>,
}

impl Compiled {
    /// Prepares a policy.
    pub(super) fn new(policy: &Policy) -> Self {
        let mut by_destination: HashMap<&Destination, Vec<RuleAt>> = HashMap::new();
        for (at, rule) in (0..).zip(&policy.rules) {
            by_destination.entry(&rule.destination).or_default().push(at);
        }
        let mut compiled = Self::default();
        let (mut zones, mut hosts, mut nets) = (Vec::new(), Vec::new(), Vec::new());
        for (destination, mut rules) in by_destination {
            rules.sort_by_key(|at| (policy.rules[*at as usize].strictness(), *at));
            match destination {
                Destination::Zone(zone) => zones.push((zone, rules)),
                Destination::Name(name) => hosts.push((name, rules)),
                Destination::Net(net) => nets.push((net.trunc(), rules)),
            }
        }
        zones.sort_by_key(|(zone, _)| zone.as_str().len()); // whatever a zone lies in comes before it
        for (zone, rules) in zones {
            let within = compiled.zone_of(zone);
            let place = compiled.put(policy, &rules, within);
            compiled.names.entry(zone.as_str().into()).or_default().below = Some(place);
            compiled.longest_zone = compiled.longest_zone.max(zone.as_str().len());
        }
        for (name, rules) in hosts {
            let within = compiled.zone_of(name);
            let place = compiled.put(policy, &rules, within);
            compiled.names.entry(name.as_str().into()).or_default().itself = Some(place);
        }
        compiled.put_nets(policy, nets);
        compiled
    }

    /// The rule that decides on a connection to a host by name.
    pub(super) fn by_name(&self, name: &Fqdn, protocol: Protocol, port: u16) -> Option<usize> {
        self.decide(self.place_of(name), protocol, port)
    }

    /// The rule by which the mildest of a host's ports is decided over TCP; none if that is decided by none.
    pub(super) fn mildest(&self, name: &Fqdn) -> Option<usize> {
        let place = self.place_of(name)?;
        self.places[place as usize].mildest.map(|at| at as usize)
    }

    /// The rule that decides on a connection to an address.
    pub(super) fn by_address(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<usize> {
        let place = match address {
            IpAddr::V4(v4) => self.v4.find(u32::from(v4).into()),
            IpAddr::V6(v6) => self.v6.find(v6.into()),
        };
        self.decide(place, protocol, port)
    }

    fn decide(&self, mut place: Option<PlaceAt>, protocol: Protocol, port: u16) -> Option<usize> {
        while let Some(at) = place {
            let here = &self.places[at as usize];
            let pieces = if protocol == Protocol::Tcp { &here.tcp } else { &here.udp };
            if let Some(rule) = pieces.find(port) {
                return Some(rule as usize);
            }
            place = here.within;
        }
        None
    }

    fn place_of(&self, name: &Fqdn) -> Option<PlaceAt> {
        self.names.get(name.as_str()).and_then(|named| named.itself).or_else(|| self.zone_of(name))
    }

    /// The longest zone that a name lies in.
    fn zone_of(&self, name: &Fqdn) -> Option<PlaceAt> {
        let zones = name.above().skip_while(|above| above.len() > self.longest_zone);
        zones.filter_map(|above| self.names.get(above)?.below).next()
    }

    fn put(&mut self, policy: &Policy, rules: &[RuleAt], within: Option<PlaceAt>) -> PlaceAt {
        let of = |protocol| Pieces::new(policy, rules, protocol);
        let mut place = Place { tcp: of(Protocol::Tcp), udp: of(Protocol::Udp), within, mildest: None };
        place.mildest = self.mildest_of(policy, &place);
        self.places.push(place);
        (self.places.len() - 1) as PlaceAt
    }

    /// Goes along the way from a place and looks only at ports that no place before has decided on.
    fn mildest_of(&self, policy: &Policy, place: &Place) -> Option<RuleAt> {
        let mut open = vec![(0, u16::MAX)];
        let mut deciding = BTreeSet::new();
        let mut here = Some(place);
        while let Some(place) = here {
            open = place.tcp.take_from(open, &mut deciding);
            here = place.within.map(|at| &self.places[at as usize]);
        }
        // A port on which nobody decides is denied, which is no milder than a rule that denies.
        deciding.into_iter().min_by_key(|at| {
            let rule: &Rule = &policy.rules[*at as usize];
            (rule.action, &rule.id, *at)
        })
    }

    fn put_nets(&mut self, policy: &Policy, mut nets: Vec<(IpNet, Vec<RuleAt>)>) {
        // Two spellings of one network (with bits beyond its length) are one.
        let mut same: BTreeMap<IpNet, Vec<RuleAt>> = BTreeMap::new();
        for (net, rules) in nets.drain(..) {
            same.entry(net).or_default().extend(rules);
        }
        let mut sorted: Vec<_> = same.into_iter().collect();
        sorted.sort_by_key(|(net, _)| (net.network(), net.prefix_len())); // an outer network before its inner ones
        let (mut v4, mut v6) = (RangesInMaking::default(), RangesInMaking::default());
        for (net, mut rules) in sorted {
            rules.sort_by_key(|at| (policy.rules[*at as usize].strictness(), *at));
            let ranges = if net.addr().is_ipv4() { &mut v4 } else { &mut v6 };
            let (first, last) = ends(&net);
            let within = ranges.leave_before(first);
            let place = self.put(policy, &rules, within);
            ranges.enter(first, last, place);
        }
        (self.v4, self.v6) = (v4.finish(), v6.finish());
    }
}

fn ends(net: &IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(v4) => (u32::from(v4.network()).into(), u32::from(v4.broadcast()).into()),
        IpNet::V6(v6) => (v6.network().into(), v6.broadcast().into()),
    }
}

impl Pieces {
    /// Cuts the ports where a rule begins or ends. `rules` are in order of strictness: of those that are open the first decides.
    pub(super) fn new(policy: &Policy, rules: &[RuleAt], protocol: Protocol) -> Self {
        // At a port: which of the rules open there, and which end before it.
        let mut cuts: BTreeMap<u32, Vec<(usize, bool)>> = BTreeMap::new();
        let mut cut = |rank, first: u16, last: u16| {
            cuts.entry(first.into()).or_default().push((rank, true));
            cuts.entry(u32::from(last) + 1).or_default().push((rank, false));
        };
        for (rank, at) in rules.iter().enumerate() {
            let rule = &policy.rules[*at as usize];
            if !rule.speaks_of(protocol) {
                continue;
            }
            if rule.ports.is_empty() {
                cut(rank, 0, u16::MAX);
            }
            rule.ports
                .iter()
                .filter(|ports| !ports.is_empty())
                .for_each(|ports| cut(rank, *ports.start(), *ports.end()));
        }
        let mut pieces: Vec<Piece> = Vec::new();
        // How often a rule is open: its own ranges may overlap.
        let mut open: BTreeMap<usize, usize> = BTreeMap::new();
        let mut since = 0;
        for (port, changes) in cuts {
            if let Some((rank, _)) = open.first_key_value() {
                let (first, last, rule) = (since as u16, (port - 1) as u16, rules[*rank]);
                match pieces.last_mut() {
                    Some(before) if before.rule == rule && u32::from(before.last) + 1 == since => before.last = last,
                    _ => pieces.push(Piece { first, last, rule }),
                }
            }
            since = port;
            for (rank, opens) in changes {
                let count = open.entry(rank).or_default();
                *count = if opens { *count + 1 } else { count.saturating_sub(1) };
            }
            open.retain(|_, count| *count > 0);
        }
        Self(pieces.into())
    }

    fn find(&self, port: u16) -> Option<RuleAt> {
        let after = self.0.partition_point(|piece| piece.first <= port);
        let piece = self.0.get(after.checked_sub(1)?)?;
        (port <= piece.last).then_some(piece.rule)
    }

    /// Whether a rule decides on any port.
    pub(super) fn decides(&self, rule: RuleAt) -> bool {
        self.0.iter().any(|piece| piece.rule == rule)
    }

    /// Notes who decides on any of these ports, and hands back those on which nobody does.
    fn take_from(&self, ports: Vec<(u16, u16)>, deciding: &mut BTreeSet<RuleAt>) -> Vec<(u16, u16)> {
        let mut left = Vec::new();
        for (first, last) in ports {
            let mut next = u32::from(first);
            let from = self.0.partition_point(|piece| piece.last < first);
            for piece in self.0[from..].iter().take_while(|piece| piece.first <= last) {
                deciding.insert(piece.rule);
                if u32::from(piece.first) > next {
                    left.push((next as u16, piece.first - 1));
                }
                next = u32::from(piece.last) + 1;
            }
            if next <= u32::from(last) {
                left.push((next as u16, last));
            }
        }
        left
    }
}

impl Ranges {
    fn find(&self, address: u128) -> Option<PlaceAt> {
        let after = self.starts.partition_point(|start| *start <= address);
        self.places[after.checked_sub(1)?]
    }
}

/// Ranges, while one goes from network to network in ascending order.
#[derive(Default)]
struct RangesInMaking {
    ranges: Vec<(u128, Option<PlaceAt>)>,
    /// The networks that one is in: last address and place, the innermost last.
    inside: Vec<(u128, PlaceAt)>,
}

impl RangesInMaking {
    /// Leaves the networks that end before an address; what is left contains it.
    fn leave_before(&mut self, address: u128) -> Option<PlaceAt> {
        while let Some((last, _)) = self.inside.last().copied().filter(|(last, _)| *last < address) {
            self.inside.pop();
            self.start(last + 1, self.inside.last().map(|(_, place)| *place));
        }
        self.inside.last().map(|(_, place)| *place)
    }

    fn enter(&mut self, first: u128, last: u128, place: PlaceAt) {
        self.start(first, Some(place));
        self.inside.push((last, place));
    }

    /// What starts later at the same address is more specific, or what is left of it.
    fn start(&mut self, first: u128, place: Option<PlaceAt>) {
        self.ranges.pop_if(|(before, _)| *before == first);
        self.ranges.push((first, place));
    }

    fn finish(mut self) -> Ranges {
        while let Some((last, _)) = self.inside.pop() {
            if let Some(next) = last.checked_add(1) {
                self.start(next, self.inside.last().map(|(_, place)| *place));
            }
        }
        let (starts, places): (Vec<_>, Vec<_>) = self.ranges.into_iter().unzip();
        Ranges { starts: starts.into(), places: places.into() }
    }
}
