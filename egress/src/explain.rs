//! Says of a connection what the wire does with it, and why: the same judge, for people.

use crate::policy::{BadName, CompiledPolicy, Flow, Fqdn, Protocol, Target, Verdict};
use crate::protocol::Explained;

/// Judges a connection to a host name or an address. The generation is 0: that of a policy which holds for nobody yet.
pub fn explain(policy: &CompiledPolicy, host: &str, port: u16, protocol: Protocol) -> Result<Explained, BadName> {
    let name;
    let target = match host.parse() {
        Ok(address) => Target::Address(address),
        Err(_) => {
            name = Fqdn::parse(host)?;
            Target::Name(&name)
        }
    };
    let decision = policy.check(&Flow { target, protocol, port });
    let dns = match target {
        Target::Address(_) => None,
        Target::Name(name) if policy.name(name).verdict == Verdict::Deny => Some("REFUSED"),
        Target::Name(_) => Some("an address of 198.18.0.0/15 that is the sandbox's alone"),
    };
    Ok(Explained {
        verdict: decision.verdict,
        rule: decision.rule.map(str::to_owned),
        reason: decision.reason.to_string(),
        generation: 0,
        dns: dns.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Document;

    #[test]
    fn what_is_explained_is_what_is_decided() {
        let text = "[[rules]]\nid = \"api\"\ndestination = \"api.example.com\"\nports = [443]\naction = \"Allow\"\n";
        let policy = CompiledPolicy::new(Document::from_toml(text).unwrap().policy);
        let explained = |host: &str, port| explain(&policy, host, port, Protocol::Tcp).unwrap();
        let open = explained("API.example.com", 443);
        assert_eq!((open.verdict, open.rule.as_deref()), (Verdict::Allow, Some("api")));
        assert!(open.dns.unwrap().contains("198.18"));
        let port = explained("api.example.com", 80);
        assert_eq!((port.verdict, port.dns.is_some()), (Verdict::Deny, true));
        assert_eq!(explained("other.example.com", 443).dns.as_deref(), Some("REFUSED"));
        assert_eq!(explained("169.254.169.254", 80).dns, None);
        explain(&policy, "a b", 443, Protocol::Tcp).unwrap_err();
    }
}
