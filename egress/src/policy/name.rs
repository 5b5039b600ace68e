//! Names of hosts, as policies and questions hold them. Source: RFC 1035 §2.3.4 (lengths), RFC 952 and 1123 §2.1 (letters,
//! digits, hyphens), UTS #46 (what people write beyond ASCII), WHATWG URL §3.5 (a name that ends in a number is an address).

use std::borrow::{Borrow, Cow};
use std::fmt;

use idna::uts46::{DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};

/// The longest name, in bytes, without the final dot.
pub const MAX_NAME: usize = 253;
/// The longest label, in bytes.
const MAX_LABEL: usize = 63;
/// What an error repeats of a name, in characters.
const SHOWN: usize = 80;

/// A fully qualified host name: A-labels, lower case, without the final dot; at most 253 bytes, a label at most 63.
///
/// A label is letters, digits and inner hyphens. `_` is for names of services (RFC 2782), which are no hosts: such a name is
/// in no policy, and the DNS refuses a question for it. The last label is no number: `127.1` and `0x7f.1` are addresses to
/// some programs, so they are names to none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fqdn(Box<str>);

/// What is no host name, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no host name: {why}")]
pub struct BadName {
    /// As it was given; the beginning of it, where it is long.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Fqdn {
    /// Reads a name in any case, with U-labels or A-labels, with or without the final dot. ASCII costs one pass and one
    /// allocation; only U-labels and `xn--` are brought before IDNA's tables.
    pub fn parse(name: &str) -> Result<Self, BadName> {
        let bad = |why| BadName { name: name.chars().take(SHOWN).collect(), why };
        let text = name.strip_suffix('.').unwrap_or(name);
        // A U-label may be longer than its A-label, but not without end.
        if text.len() > 4 * MAX_NAME {
            return Err(bad("more than 253 bytes"));
        }
        let plain = text.is_ascii() && !text.split('.').any(is_a_label);
        let ascii = match plain {
            true => Cow::Borrowed(text),
            false => Uts46::new()
                .to_ascii(text.as_bytes(), idna::AsciiDenyList::EMPTY, Hyphens::CheckFirstLast, DnsLength::Ignore)
                .map_err(|_| bad("it does not follow IDNA (UTS #46)"))?,
        };
        let mut ascii = Box::<str>::from(ascii);
        ascii.make_ascii_lowercase();
        host(&ascii).map_err(bad)?;
        Ok(Self(ascii))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it lies below `zone`, at any depth; a zone does not contain its own name.
    pub fn is_below(&self, zone: &Fqdn) -> bool {
        self.0.strip_suffix(zone.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }

    /// What it lies below, the nearest first: `example.com` and `com` of `www.example.com`.
    pub fn above(&self) -> impl Iterator<Item = &str> {
        self.0.bytes().enumerate().filter(|(_, byte)| *byte == b'.').map(|(at, _)| &self.0[at + 1..])
    }
}

fn is_a_label(label: &str) -> bool {
    label.as_bytes().get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"xn--"))
}

/// Whether a lower-case name could be a host's.
fn host(name: &str) -> Result<(), &'static str> {
    if name.len() > MAX_NAME {
        return Err("more than 253 bytes");
    }
    let mut last = "";
    for label in name.split('.') {
        if label.is_empty() {
            return Err("an empty label");
        }
        if label.len() > MAX_LABEL {
            return Err("a label of more than 63 bytes");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label that begins or ends with a hyphen");
        }
        if let Some(wrong) = label.bytes().find(|b| !matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(match wrong {
                b'_' => "`_` is for names of services, not of hosts",
                b'*' => "`*` stands for the whole first label only, as in *.example.com",
                b':' | b'%' | b'[' | b']' => "neither ports, zone ids nor brackets belong here",
                _ => "a character other than letters, digits and hyphens",
            });
        }
        last = label;
    }
    let hex = |digits: &str| digits.bytes().all(|b| b.is_ascii_hexdigit());
    if last.bytes().all(|b| b.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(hex) {
        return Err("it ends in a number, as only addresses do: write addresses as 192.0.2.1 or 2001:db8::1");
    }
    Ok(())
}

impl fmt::Display for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Fqdn {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        Self::parse(name)
    }
}

impl TryFrom<String> for Fqdn {
    type Error = BadName;

    fn try_from(name: String) -> Result<Self, BadName> {
        Self::parse(&name)
    }
}

impl From<Fqdn> for String {
    fn from(name: Fqdn) -> Self {
        name.0.into()
    }
}

/// Equal, ordered and hashed as its text.
impl Borrow<str> for Fqdn {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_host_has_one_name_however_it_is_written() {
        for (written, name) in [
            ("example.com", "example.com"),
            ("EXAMPLE.Com.", "example.com"),
            ("Bücher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.Example", "xn--bcher-kva.example"),
            ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
            ("ｅｘａｍｐｌｅ.com", "example.com"),
            ("r3---sn-abc.example.com", "r3---sn-abc.example.com"),
            ("localhost", "localhost"),
            ("1.2.3.example", "1.2.3.example"),
            ("0xyz.example", "0xyz.example"),
            (&format!("{}.com", "a".repeat(63)), &format!("{}.com", "a".repeat(63))),
        ] {
            assert_eq!(Fqdn::parse(written).map(String::from), Ok(name.to_owned()), "{written}");
        }
    }

    #[test]
    fn what_is_no_host_is_no_name() {
        let longest = format!("{}.abcde", ["abcdefg"; 31].join("."));
        assert_eq!(longest.len(), 253);
        Fqdn::parse(&longest).unwrap();
        let too_long = "a.".repeat(127);
        let label = format!("{}.com", "a".repeat(64));
        for (written, why) in [
            ("", "empty label"),
            (".", "empty label"),
            ("..", "empty label"),
            ("a..b", "empty label"),
            (".example.com", "empty label"),
            ("example.com..", "empty label"),
            ("example.com。", "empty label"),
            (&format!("a{longest}"), "253"),
            (&too_long, ""),
            (&"ü".repeat(5000), "253"),
            (&label, "63"),
            ("-a.com", "hyphen"),
            ("a-.com", "hyphen"),
            ("_dmarc.example.com", "services"),
            ("a b.com", "character"),
            ("a\0.com", "character"),
            ("a/b.com", "character"),
            ("exa%6dple.com", "zone ids"),
            ("example.com:443", "ports"),
            ("[::1]", "brackets"),
            ("fe80::1%eth0", "zone ids"),
            ("a.*.com", "first label"),
            ("xn--.com", "IDNA"),
            ("xn--a.com", "IDNA"),
            ("xn--zzzzzzzzz99999.com", "IDNA"),
            ("a\u{200b}\u{ffff}.com", "IDNA"),
            // An address to inet_aton or to a browser.
            ("127.1", "number"),
            ("0x7f.1", "number"),
            ("0x7f000001", "number"),
            ("0X7F.0x1", "number"),
            ("0x", "number"),
            ("2130706433", "number"),
            ("017700000001", "number"),
            ("0177.0.0.1", "number"),
            ("127.0.0.1", "number"),
            ("1.2.3.4.5", "number"),
            ("example.1", "number"),
            ("１２７.0.0.1", "number"),
            ("①②⑦.1", "number"),
        ] {
            if written == too_long {
                Fqdn::parse(written).unwrap(); // 253 bytes and the dot
                continue;
            }
            let error = Fqdn::parse(written).expect_err(written).to_string();
            assert!(error.contains(why), "{written}: {error}");
            assert!(error.chars().count() < 400, "{written}: {error}");
        }
    }

    #[test]
    fn a_zone_holds_what_is_below_it_and_not_itself() {
        let name = |text| Fqdn::parse(text).unwrap();
        for (below, zone, expected) in [
            ("www.example.com", "example.com", true),
            ("a.b.example.com", "example.com", true),
            ("example.com", "example.com", false),
            ("badexample.com", "example.com", false),
            ("example.com", "www.example.com", false),
        ] {
            assert_eq!(name(below).is_below(&name(zone)), expected, "{below} {zone}");
            assert_eq!(name(below).above().any(|above| above == zone), expected, "{below} {zone}");
        }
        assert!(name("a.b.example.com").above().eq(["b.example.com", "example.com", "com"]));
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_itself(text in "\\PC{0,40}|([a-zA-Z0-9äß\u{200d}。*_-]{0,8}\\.){0,4}(xn--)?[a-z0-9]{0,6}") {
            if let Ok(name) = Fqdn::parse(&text) {
                prop_assert_eq!(Fqdn::parse(name.as_str()), Ok(name.clone()));
                prop_assert!(name.as_str().len() <= MAX_NAME && !name.as_str().bytes().any(|b| b.is_ascii_uppercase()));
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
                let json = serde_json::to_string(&name).unwrap();
                prop_assert_eq!(serde_json::from_str::<Fqdn>(&json).unwrap(), name);
            }
        }
    }
}
