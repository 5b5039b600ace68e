//! A sandbox's network, seen from inside and from the host: its interfaces, and of each the end on our side, on which the
//! fence will stand. Only veth pairs into our own network namespace can be fenced. runsc takes the addresses off an interface
//! when it starts, so this comes before. Source: rtnetlink(7), Linux `include/uapi/linux/if_link.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::SockProtocol;
use serde::{Deserialize, Serialize};

use super::netlink::{self, Message, Netlink};
use crate::protocol::Interface;

/// What a network namespace has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nothing but `lo`: no packet can leave, and there is nothing to fence.
    Sealed,
    /// Interfaces, each of which can be fenced.
    Wired(Vec<Port>),
}

/// An interface, as the fence needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The interface and its other end.
    pub interface: Interface,
    /// Where other machines share its wire (a bridge): the addresses of its gateway, the only ones that it may ask for.
    pub neighbours: Option<Vec<IpAddr>>,
}

/// Why a network cannot be fenced.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The kernel did not say.
    #[error("cannot {doing}")]
    Kernel {
        /// What was to be done.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// An interface whose packets do not come by us.
    #[error(
        "interface {name} ({kind}) is no veth pair into this network namespace, so it cannot be fenced: give the sandbox a network of the CNI plugins bridge or ptp"
    )]
    NotFenceable {
        /// Its name in the sandbox.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The other end hangs on something else than a bridge.
    #[error(
        "interface {name}: its host end {host_name} belongs to a {kind}: only a Linux bridge, or nothing, can be fenced"
    )]
    Controller {
        /// Its name in the sandbox.
        name: String,
        /// Its other end.
        host_name: String,
        /// What that belongs to.
        kind: String,
    },
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> NetnsError {
    move |source| NetnsError::Kernel { doing, source }
}

/// Looks at a network namespace, from the one that the caller is in.
pub fn look(netns: impl AsFd) -> Result<Network, NetnsError> {
    let netns = netns.as_fd();
    let (links, addresses) = inside(netns).map_err(failed("look into the sandbox's network namespace"))?;
    let host = Netlink::open(SockProtocol::NetlinkRoute).map_err(failed("open a socket"))?;
    let mut ports = Vec::new();
    for link in &links {
        if link.is_loopback() || link.is_idle_tunnel() {
            continue;
        }
        let own = addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, address)| *address).collect();
        ports.push(port(&host, netns, link, own)?);
    }
    Ok(if ports.is_empty() { Network::Sealed } else { Network::Wired(ports) })
}

/// Whether an interface's end on the host is still there.
pub fn stands(interface: &Interface) -> io::Result<bool> {
    let end = link(&Netlink::open(SockProtocol::NetlinkRoute)?, interface.host_index)?;
    Ok(end.is_some_and(|end| end.name == interface.host_name && end.kind == Some(InfoKind::Veth)))
}

/// On a thread of its own: a thread that has moved into another network namespace is of no use for anything else.
fn inside(netns: BorrowedFd<'_>) -> io::Result<(Vec<Link>, Addresses)> {
    let look = || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        let netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
        Ok((links(&netlink)?, addresses(&netlink, 0)?))
    };
    std::thread::scope(|scope| scope.spawn(look).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// The other end, with which both sides agree that they belong together.
fn port(host: &Netlink, netns: BorrowedFd<'_>, link: &Link, addresses: Vec<IpAddr>) -> Result<Port, NetnsError> {
    let not_fenceable = || NetnsError::NotFenceable { name: link.name.clone(), kind: link.kind_name() };
    let (Some(InfoKind::Veth), Some(peer), Some(_), Some(mac)) = (&link.kind, link.peer, link.peer_netns, link.mac)
    else {
        return Err(not_fenceable());
    };
    let end = self::link(host, peer).map_err(failed("look for the host end"))?;
    // Its peer has our link's index; asked for it, the kernel names the peer's namespace by a number …
    let end =
        end.filter(|end| end.kind == Some(InfoKind::Veth) && end.peer == Some(link.index)).ok_or_else(not_fenceable)?;
    // … which must be that of the sandbox.
    let number = nsid(host, netns).map_err(failed("number the sandbox's network namespace"))?;
    let (Some(_), true, Some(end_mac)) = (number, end.peer_netns == number, end.mac) else {
        return Err(not_fenceable());
    };
    let (gateway_mac, neighbours) = match end.controller {
        None => (end_mac, None),
        Some(index) => {
            let bridge = self::link(host, index).map_err(failed("look for the bridge"))?.ok_or_else(not_fenceable)?;
            let (Some(InfoKind::Bridge), Some(mac)) = (&bridge.kind, bridge.mac) else {
                let (name, host_name, kind) = (link.name.clone(), end.name, bridge.kind_name());
                return Err(NetnsError::Controller { name, host_name, kind });
            };
            let gateways = self::addresses(host, index).map_err(failed("list the bridge's addresses"))?;
            (mac, Some(gateways.into_iter().map(|(_, address)| address).collect()))
        }
    };
    let (name, host_name, host_index) = (link.name.clone(), end.name, end.index);
    Ok(Port { interface: Interface { name, host_name, host_index, mac, gateway_mac, addresses }, neighbours })
}

/// Addresses, and the interfaces that have them.
type Addresses = Vec<(u32, IpAddr)>;

#[derive(Debug, Default)]
struct Link {
    index: u32,
    name: String,
    kind: Option<InfoKind>,
    up: bool,
    loopback: bool,
    mac: Option<[u8; 6]>,
    peer: Option<u32>,
    peer_netns: Option<i32>,
    controller: Option<u32>,
}

impl Link {
    fn is_loopback(&self) -> bool {
        self.loopback
    }

    /// The kernel puts one of each kind into every namespace. Down it carries nothing, and up its packets would leave by one of
    /// the other interfaces.
    fn is_idle_tunnel(&self) -> bool {
        use InfoKind::*;
        let tunnel = matches!(self.kind, Some(IpIp | Ip6Tnl | SitTun | GreTun | GreTap | GreTun6 | GreTap6 | Vti));
        tunnel && !self.up
    }

    fn kind_name(&self) -> String {
        self.kind.as_ref().map_or("a device of the host".into(), |kind| kind.to_string())
    }

    fn of(message: LinkMessage) -> Self {
        use netlink_packet_route::link::LinkFlags;
        let flags = message.header.flags;
        let (up, loopback) = (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::Loopback));
        let mut link = Self { index: message.header.index, up, loopback, ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkNetNsId(number) => link.peer_netns = Some(number),
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

fn links(netlink: &Netlink) -> io::Result<Vec<Link>> {
    let answers = ask(netlink, NLM_F_DUMP, RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(answers.into_iter().filter_map(one_link).collect())
}

fn link(netlink: &Netlink, index: u32) -> io::Result<Option<Link>> {
    let mut question = LinkMessage::default();
    question.header.index = index;
    match ask(netlink, 0, RouteNetlinkMessage::GetLink(question)) {
        Ok(answers) => Ok(answers.into_iter().find_map(one_link)),
        Err(error) if netlink::refusal(&error) == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn one_link(answer: RouteNetlinkMessage) -> Option<Link> {
    match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::of(message)),
        _ => None,
    }
}

/// The addresses of one interface, or (0) of all.
fn addresses(netlink: &Netlink, index: u32) -> io::Result<Addresses> {
    let answers = ask(netlink, NLM_F_DUMP, RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let address = |answer| match answer {
        RouteNetlinkMessage::NewAddress(message) => {
            // On a point-to-point link `Address` is the other end's.
            let own = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            };
            let any = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            };
            let found = message.attributes.iter().find_map(own).or_else(|| message.attributes.iter().find_map(any));
            found.map(|address| (message.header.index, address))
        }
        _ => None,
    };
    Ok(answers.into_iter().filter_map(address).filter(|(of, _)| index == 0 || *of == index).collect())
}

/// The number that the kernel calls another network namespace by.
fn nsid(netlink: &Netlink, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(netns.as_raw_fd() as u32));
    let answers = ask(netlink, 0, RouteNetlinkMessage::GetNsId(question))?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => message.attributes.into_iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(number) if number >= 0 => Some(number),
            _ => None,
        }),
        _ => None,
    }))
}

fn ask(netlink: &Netlink, flags: u16, question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut payload = vec![0; question.buffer_len()];
    question.serialize(&mut payload);
    let answers = netlink.ask(Message { kind: question.message_type(), flags, payload })?;
    let read = |answer: Message| {
        let mut header = NetlinkHeader::default();
        header.message_type = answer.kind;
        RouteNetlinkMessage::deserialize(&header, &answer.payload).map_err(io::Error::other)
    };
    answers.into_iter().map(read).collect()
}
