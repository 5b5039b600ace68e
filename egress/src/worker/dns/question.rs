//! What a sandbox asks: bytes → a question, or what is wrong with them. Bounded before it is parsed: one question, no answers,
//! at most an OPT and a signature beside it (RFC 1035 §4, RFC 6891). The grammar itself is hickory-proto's.

use std::net::Ipv4Addr;

use hickory_proto::op::{Header, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::policy::Fqdn;

/// The longest message that is looked at. A question takes 271 bytes, its options seldom more than a hundred.
pub const LONGEST: usize = 1232;

/// A question of class IN, well formed.
#[derive(Clone, Debug)]
pub struct Question {
    /// What the answer must carry too.
    pub frame: Frame,
    /// The name, in the case it was asked in: a client may compare that.
    pub name: Name,
    /// What of it.
    pub kind: RecordType,
}

/// What an answer repeats of the message it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which message.
    pub id: u16,
    /// What it wanted done.
    pub op_code: OpCode,
    /// Whether recursion was desired.
    pub recursion_desired: bool,
    /// Whether the client speaks EDNS.
    pub edns: bool,
}

/// What is not a question that can be answered.
#[derive(Clone, Debug)]
pub enum Malformed {
    /// No question at all; silence, so that two servers never talk to each other.
    NoQuestion,
    /// A question of which no more is known than that it is one: FORMERR, NOTIMP or BADVERS, without the question.
    Bad(Frame, ResponseCode),
    /// A question of another class than IN: REFUSED.
    OtherClass(Question),
}

impl Question {
    /// Reads a message.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = Header::read(&mut BinDecoder::new(bytes)).map_err(|_| Malformed::NoQuestion)?;
        if header.metadata.message_type == MessageType::Response {
            return Err(Malformed::NoQuestion);
        }
        let mut frame = Frame {
            id: header.metadata.id,
            op_code: header.metadata.op_code,
            recursion_desired: header.metadata.recursion_desired,
            edns: false,
        };
        if header.metadata.op_code != OpCode::Query {
            return Err(Malformed::Bad(frame, ResponseCode::NotImp));
        }
        let counts = header.counts;
        let plausible =
            counts.queries == 1 && counts.answers == 0 && counts.authorities == 0 && counts.additionals <= 2;
        if !plausible || header.metadata.truncation || bytes.len() > LONGEST {
            return Err(Malformed::Bad(frame, ResponseCode::FormErr));
        }
        let mut message = Message::from_vec(bytes).map_err(|_| Malformed::Bad(frame, ResponseCode::FormErr))?;
        if let Some(edns) = &message.edns {
            frame.edns = true;
            if edns.version() != 0 {
                return Err(Malformed::Bad(frame, ResponseCode::BADVERS));
            }
        }
        let query = message.queries.pop().ok_or(Malformed::Bad(frame, ResponseCode::FormErr))?;
        let question = Self { frame, name: query.name().clone(), kind: query.query_type() };
        match query.query_class() {
            DNSClass::IN => Ok(question),
            _ => Err(Malformed::OtherClass(question)),
        }
    }

    /// The name as policies know names; none where it cannot be a host's. A label is taken as it is: a dot or a letter beyond
    /// ASCII in it makes it no other name.
    pub fn host(&self) -> Option<Fqdn> {
        let mut text = String::with_capacity(self.name.len());
        for label in &self.name {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if !label.iter().all(plain) {
                return None;
            }
            text.extend(label.iter().map(|byte| char::from(*byte)));
            text.push('.');
        }
        Fqdn::parse(&text).ok()
    }

    /// The address whose name is asked for, in the form that RFC 1035 §3.5 gives it.
    pub fn pointer(&self) -> Option<Ipv4Addr> {
        let mut octets = [0; 4];
        let labels: Vec<&[u8]> = self.name.iter().collect();
        let (digits, arpa) = labels.split_at_checked(4)?;
        let [second, first] = arpa else { return None };
        if !second.eq_ignore_ascii_case(b"in-addr") || !first.eq_ignore_ascii_case(b"arpa") {
            return None;
        }
        for (octet, label) in octets.iter_mut().rev().zip(digits) {
            let text = std::str::from_utf8(label).ok()?;
            *octet = text.parse().ok().filter(|value: &u8| value.to_string() == text)?;
        }
        Some(octets.into())
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::{Edns, Query};
    use proptest::prelude::*;

    use super::*;

    fn message(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn asked(name: Name) -> Question {
        let frame = Frame { id: 1, op_code: OpCode::Query, recursion_desired: true, edns: false };
        Question { frame, name, kind: RecordType::A }
    }

    #[test]
    fn a_plain_question_is_read_as_it_was_asked() {
        let mut asked = message("API.Example.com.", RecordType::HTTPS);
        asked.set_edns(Edns::new());
        let read = Question::read(&asked.to_vec().unwrap()).unwrap();
        assert_eq!(read.name.to_ascii(), "API.Example.com.", "the case is kept");
        assert_eq!((read.kind, read.frame.id, read.frame.edns), (RecordType::HTTPS, asked.metadata.id, true));
        assert_eq!(read.host().unwrap().as_str(), "api.example.com");
    }

    #[test]
    fn what_is_no_single_plain_question_is_told_what_it_is() {
        type Change = fn(&mut Message);
        let cases: [(&str, Change, Option<ResponseCode>); 8] = [
            ("an answer", |m| m.metadata.message_type = MessageType::Response, None),
            ("an update", |m| m.metadata.op_code = OpCode::Update, Some(ResponseCode::NotImp)),
            ("a notification", |m| m.metadata.op_code = OpCode::Notify, Some(ResponseCode::NotImp)),
            ("no question", |m| m.queries.clear(), Some(ResponseCode::FormErr)),
            ("two questions", |m| m.queries.push(m.queries[0].clone()), Some(ResponseCode::FormErr)),
            ("a question cut short", |m| m.metadata.truncation = true, Some(ResponseCode::FormErr)),
            (
                "a question with an answer in it",
                |m| {
                    let name = m.queries[0].name().clone();
                    let a = hickory_proto::rr::RData::A(Ipv4Addr::LOCALHOST.into());
                    m.add_answer(hickory_proto::rr::Record::from_rdata(name, 1, a));
                },
                Some(ResponseCode::FormErr),
            ),
            (
                "an EDNS version to come",
                |m| {
                    m.set_edns(Edns::new().set_version(1).clone());
                },
                Some(ResponseCode::BADVERS),
            ),
        ];
        for (what, change, expected) in cases {
            let mut message = message("example.com.", RecordType::A);
            change(&mut message);
            match (Question::read(&message.to_vec().unwrap()), expected) {
                (Err(Malformed::NoQuestion), None) => {}
                (Err(Malformed::Bad(frame, code)), Some(expected)) => {
                    assert_eq!((frame.id, code), (message.metadata.id, expected), "{what}");
                }
                (other, _) => panic!("{what}: {other:?}"),
            }
        }
        let mut chaos = message("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert!(matches!(Question::read(&chaos.to_vec().unwrap()), Err(Malformed::OtherClass(_))));
    }

    #[test]
    fn a_label_that_holds_a_dot_or_another_alphabet_is_no_host() {
        let of = |labels: &[&[u8]]| asked(Name::from_labels(labels.iter().copied()).unwrap()).host();
        assert_eq!(of(&[b"api", b"example", b"com"]).unwrap().as_str(), "api.example.com");
        for odd in [&b"api.example"[..], b"a\0b", b"a b", b"a\\b", "b\u{fc}cher".as_bytes(), b"*"] {
            assert!(of(&[odd, b"com"]).is_none(), "{odd:?}");
        }
        assert!(asked(Name::root()).host().is_none());
    }

    #[test]
    fn a_pointer_is_four_plain_numbers_below_in_addr_arpa() {
        for (name, address) in [
            ("4.3.18.198.in-addr.arpa.", Some([198, 18, 3, 4])),
            ("4.3.18.198.IN-ADDR.ARPA.", Some([198, 18, 3, 4])),
            ("3.18.198.in-addr.arpa.", None),
            ("5.4.3.18.198.in-addr.arpa.", None),
            ("04.3.18.198.in-addr.arpa.", None),
            ("256.3.18.198.in-addr.arpa.", None),
            ("4.3.18.198.in-addr.example.", None),
        ] {
            assert_eq!(asked(Name::from_str(name).unwrap()).pointer(), address.map(Ipv4Addr::from), "{name}");
        }
    }

    proptest! {
        #[test]
        fn whatever_bytes_come_they_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Question::read(&bytes).map(|question| (question.host(), question.pointer()));
        }

        #[test]
        fn so_are_bytes_that_begin_as_a_question_does(tail in prop::collection::vec(any::<u8>(), 0..600), additionals in 0..3u8) {
            let mut bytes = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, additionals];
            bytes.extend(tail);
            let _ = Question::read(&bytes).map(|question| (question.host(), question.pointer()));
        }
    }
}
