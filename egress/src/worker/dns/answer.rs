//! What a question is answered with: the table of docs/egress.md, "Names". Pure. Nothing here or after it asks anybody else:
//! what a sandbox asks for never leaves the node; only what it connects to is resolved, by the gate.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::rr::RecordType;

use super::question::Question;
use super::settings::{DeniedAs, DnsSettings, Limits};
use super::synthetic::NoAddress;
use crate::policy::{CompiledPolicy, Decision, Fqdn, Reason, Verdict};

/// What may be said of a question by its policy alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The synthetic address of this name.
    Address(Fqdn),
    /// The name of this synthetic address, if it is the sandbox's.
    Pointer(Ipv4Addr),
    /// An answer already.
    Answer(Answer),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A synthetic address.
    Address(Ipv4Addr),
    /// The sandbox itself, by IPv4 or by IPv6 (RFC 6761 §6.3).
    Loopback,
    /// The name of a synthetic address.
    Pointer(Arc<Fqdn>),
    /// There is such a name, but not what was asked of it.
    NoData,
    /// The name is denied, and said not to be there.
    NoSuchName(Refusal),
    /// It is refused.
    Refused(Refusal),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The policy denies the name.
    #[error("{}", by_rule(.rule.as_deref(), *.reason))]
    Denied {
        /// The rule that does.
        rule: Option<String>,
        /// Why.
        reason: Reason,
    },
    /// It is not a host's name.
    #[error("not a host name")]
    NoHost,
    /// Only host names are answered here.
    #[error("no answer of type {0} ({number}) is given", number = u16::from(*.0))]
    Kind(RecordType),
    /// Only class IN is.
    #[error("no answer of this class is given")]
    Class,
    /// The name goes beyond a limit.
    #[error("a name of more than {most} {what}")]
    TooLong {
        /// How much is allowed.
        most: usize,
        /// Of what.
        what: &'static str,
    },
    /// There is no address for it.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// No synthetic address of this sandbox.
    #[error("not an address of this sandbox's names")]
    NoPointer,
    /// Who asks is no sandbox.
    #[error("not a sandbox's address")]
    NoSandbox,
}

fn by_rule(rule: Option<&str>, reason: Reason) -> String {
    match rule {
        Some(rule) => format!("rule {rule}: {reason}"),
        None => reason.to_string(),
    }
}

/// Judges a question.
pub fn judge(question: &Question, policy: &CompiledPolicy, settings: &DnsSettings) -> Judged {
    let refused = |refusal| Judged::Answer(Answer::Refused(refusal));
    match question.kind {
        RecordType::PTR => return question.pointer().map_or(refused(Refusal::NoPointer), Judged::Pointer),
        RecordType::A | RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => {}
        // TXT, NULL, MX, SRV, CNAME, ANY, …: of any name, and so of no use to a tunnel.
        other => return refused(Refusal::Kind(other)),
    }
    let Some(name) = question.host() else { return refused(Refusal::NoHost) };
    if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
        return Judged::Answer(match question.kind {
            RecordType::A | RecordType::AAAA => Answer::Loopback,
            _ => Answer::NoData,
        });
    }
    let Decision { verdict, rule, reason } = policy.name(&name);
    if verdict == Verdict::Deny {
        let refusal = Refusal::Denied { rule: rule.map(str::to_owned), reason };
        let absent = settings.denied == DeniedAs::NxDomain || of_a_search_list(&name, policy, &settings.search);
        return Judged::Answer(if absent { Answer::NoSuchName(refusal) } else { Answer::Refused(refusal) });
    }
    if let Some(refusal) = too_long(&name, &settings.limits) {
        return refused(refusal);
    }
    match question.kind {
        RecordType::A => Judged::Address(name),
        _ => Judged::Answer(Answer::NoData),
    }
}

/// Whether a denied name looks like one that a resolver made by trying its search list: a name that is allowed, with a domain
/// appended; or one below a domain that is known to be in such lists. At REFUSED glibc (2.36) leaves its list and tries only the
/// name as it is, and musl (1.2.3) waits 5 s and gives up: what comes later in the list would never be asked for.
fn of_a_search_list(name: &Fqdn, policy: &CompiledPolicy, search: &[Fqdn]) -> bool {
    if search.iter().any(|domain| name.is_below(domain)) {
        return true;
    }
    let text = name.as_str();
    // The longest first; a single label counts too.
    text.rmatch_indices('.')
        .any(|(end, _)| Fqdn::parse(&text[..end]).is_ok_and(|before| policy.name(&before).verdict != Verdict::Deny))
}

/// Names carry what a sandbox writes into them to whoever runs their zone, once they are connected to.
fn too_long(name: &Fqdn, limits: &Limits) -> Option<Refusal> {
    let labels = || name.as_str().split('.');
    let over = |size: usize, most: usize, what| (size > most).then_some(Refusal::TooLong { most, what });
    over(name.as_str().len(), limits.name_bytes, "bytes")
        .or_else(|| over(labels().count(), limits.labels, "labels"))
        .or_else(|| over(labels().map(str::len).max().unwrap_or(0), limits.label_bytes, "bytes in a label"))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::OpCode;
    use hickory_proto::rr::Name;

    use super::*;
    use crate::policy::{Action, Destination, Policy, Rule};
    use crate::worker::dns::question::Frame;

    fn policy() -> CompiledPolicy {
        let rule = |id: &str, destination, action| Rule {
            id: id.to_owned(),
            destination,
            ports: Vec::new(),
            protocol: None,
            action,
            allow_special: false,
        };
        let name = |text: &str| Fqdn::parse(text).unwrap();
        CompiledPolicy::new(Policy {
            rules: vec![
                rule("api", Destination::Name(name("api.example.com")), Action::Allow),
                rule("asked", Destination::Name(name("asked.example.com")), Action::RequireAuthz),
                rule("zone", Destination::Zone(name("example.net")), Action::Allow),
                rule("never", Destination::Name(name("secret.example.net")), Action::Deny),
                rule("cluster", Destination::Name(name("db.other.svc.cluster.local")), Action::Allow),
            ],
        })
    }

    fn judged(name: &str, kind: RecordType, settings: &DnsSettings) -> Judged {
        let frame = Frame { id: 1, op_code: OpCode::Query, recursion_desired: true, edns: false };
        judge(&Question { frame, name: Name::from_str(name).unwrap(), kind }, &policy(), settings)
    }

    /// What is asked → what it is answered with, in a word.
    #[test]
    fn each_kind_of_question_has_its_answer() {
        use RecordType as T;
        for (name, kind, expected) in [
            ("api.example.com.", T::A, "address api.example.com"),
            ("API.Example.COM.", T::A, "address api.example.com"),
            ("asked.example.com.", T::A, "address asked.example.com"),
            ("a.b.example.net.", T::A, "address a.b.example.net"),
            ("api.example.com.", T::AAAA, "no data"),
            ("api.example.com.", T::HTTPS, "no data"),
            ("api.example.com.", T::SVCB, "no data"),
            ("api.example.com.", T::TXT, "refused: no answer of type TXT (16) is given"),
            ("api.example.com.", T::MX, "refused: no answer of type MX (15) is given"),
            ("api.example.com.", T::SRV, "refused: no answer of type SRV (33) is given"),
            ("api.example.com.", T::NS, "refused: no answer of type NS (2) is given"),
            ("api.example.com.", T::CNAME, "refused: no answer of type CNAME (5) is given"),
            ("api.example.com.", T::NULL, "refused: no answer of type NULL (10) is given"),
            ("api.example.com.", T::ANY, "refused: no answer of type ANY (255) is given"),
            ("api.example.com.", T::Unknown(65_399), "refused: no answer of type Unknown (65399) is given"),
            ("evil.example.org.", T::A, "refused: no rule allows it"),
            ("evil.example.org.", T::AAAA, "refused: no rule allows it"),
            ("evil.example.org.", T::TXT, "refused: no answer of type TXT (16) is given"),
            ("secret.example.net.", T::A, "refused: rule never: the rule says so"),
            ("example.net.", T::A, "refused: no rule allows it"),
            ("_tcp.example.net.", T::SRV, "refused: no answer of type SRV (33) is given"),
            (".", T::A, "refused: not a host name"),
            ("localhost.", T::A, "loopback"),
            ("db.localhost.", T::AAAA, "loopback"),
            ("localhost.", T::HTTPS, "no data"),
            ("1.0.18.198.in-addr.arpa.", T::PTR, "pointer 198.18.0.1"),
            ("8.b.d.0.1.0.0.2.ip6.arpa.", T::PTR, "refused: not an address of this sandbox's names"),
            ("1.0.18.198.in-addr.arpa.", T::A, "refused: no rule allows it"),
        ] {
            let said = match judged(name, kind, &DnsSettings::default()) {
                Judged::Address(name) => format!("address {name}"),
                Judged::Pointer(address) => format!("pointer {address}"),
                Judged::Answer(Answer::Refused(why)) => format!("refused: {why}"),
                Judged::Answer(Answer::NoSuchName(why)) => format!("no such name: {why}"),
                Judged::Answer(Answer::NoData) => "no data".to_owned(),
                Judged::Answer(Answer::Loopback) => "loopback".to_owned(),
                Judged::Answer(other) => format!("{other:?}"),
            };
            assert_eq!(said, expected, "{name} {kind}");
        }
    }

    #[test]
    fn a_denied_name_of_a_search_list_lets_the_resolver_go_on() {
        let search = DnsSettings { search: vec![Fqdn::parse("cluster.local").unwrap()], ..DnsSettings::default() };
        let plain = DnsSettings::default();
        for (name, settings, goes_on) in [
            ("api.example.com.default.svc.cluster.local.", &plain, true),
            ("a.b.example.net.corp.example.org.", &plain, true),
            ("db.other.default.svc.cluster.local.", &plain, false),
            ("db.other.default.svc.cluster.local.", &search, true),
            ("cluster.local.", &search, false),
            ("evil.example.org.", &search, false),
        ] {
            match judged(name, RecordType::A, settings) {
                Judged::Answer(Answer::NoSuchName(_)) => assert!(goes_on, "{name}"),
                Judged::Answer(Answer::Refused(_)) => assert!(!goes_on, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_operator_may_have_denied_names_said_not_to_be_there() {
        let settings = DnsSettings { denied: DeniedAs::NxDomain, ..DnsSettings::default() };
        let answer = judged("evil.example.org.", RecordType::A, &settings);
        assert!(matches!(answer, Judged::Answer(Answer::NoSuchName(Refusal::Denied { .. }))), "{answer:?}");
    }

    #[test]
    fn an_allowed_name_beyond_a_limit_is_refused() {
        let limits = Limits { name_bytes: 40, label_bytes: 12, labels: 5, ..Limits::default() };
        let settings = DnsSettings { limits, ..DnsSettings::default() };
        for (name, refused) in [
            ("a.b.c.example.net.", None),
            ("a.b.c.d.example.net.", Some("a name of more than 5 labels")),
            ("abcdefghijkl.example.net.", None),
            ("abcdefghijklm.example.net.", Some("a name of more than 12 bytes in a label")),
            ("abcdefghijkl.abcdefghijkl.abcd.example.net.", Some("a name of more than 40 bytes")),
        ] {
            match (judged(name, RecordType::A, &settings), refused) {
                (Judged::Address(_), None) => {}
                (Judged::Answer(Answer::Refused(why)), Some(expected)) => assert_eq!(why.to_string(), expected),
                (other, _) => panic!("{name}: {other:?}"),
            }
        }
    }
}
