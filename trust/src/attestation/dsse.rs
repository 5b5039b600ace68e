//! The envelope: a payload, its type, and signatures over both. Pure.
//! Source: DSSE v1.0 (secure-systems-lab/dsse, `protocol.md` and `envelope.md`). Read more strictly than it asks: one
//! signature, standard base64, no member that we do not know (a key in an envelope would be a stranger's word).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::json;
use crate::keys::Signer;
use crate::keys::jwks::PublicKey;

/// The one type of payload.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// No envelope is larger, in bytes: ours have 4 KiB.
pub const MAX_BYTES: usize = 64 * 1024;

/// An envelope with one signature. Whether the signature is good is not said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    payload: Vec<u8>,
    keyid: String,
    signature: Vec<u8>,
}

/// As it is written.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Wire {
    /// The statement (in-toto), base64.
    payload: String,
    /// What it is.
    payload_type: String,
    /// One, by a key of the node.
    signatures: Vec<WireSignature>,
}

#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WireSignature {
    /// The key's RFC 7638 thumbprint.
    keyid: String,
    /// The signature over payload and type (DSSE's PAE), base64.
    sig: String,
}

/// Why bytes are no envelope.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEnvelope {
    /// Not read any further.
    #[error("the envelope is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// Not JSON, a key twice, a member missing or unknown.
    #[error("not a DSSE envelope: {0}")]
    Shape(String),
    /// Somebody else's statement, or one of ours in disguise.
    #[error("payloadType is not {PAYLOAD_TYPE}")]
    PayloadType,
    /// Ours have one.
    #[error("{0} signatures, not one")]
    Signatures(usize),
    /// The named member is not standard base64.
    #[error("{0} is not base64")]
    Base64(&'static str),
}

impl Envelope {
    /// Signs a payload.
    pub fn sign(payload: Vec<u8>, signer: &Signer) -> Self {
        let signature = signer.sign(&pae(PAYLOAD_TYPE, &payload)).into();
        Self { payload, keyid: signer.id().to_string(), signature }
    }

    /// Reads an envelope.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadEnvelope> {
        if bytes.len() > MAX_BYTES {
            return Err(BadEnvelope::TooLong);
        }
        let wire: Wire = json::from_slice(bytes).map_err(|e| BadEnvelope::Shape(e.to_string()))?;
        if wire.payload_type != PAYLOAD_TYPE {
            return Err(BadEnvelope::PayloadType);
        }
        let [signature] = wire.signatures.as_slice() else {
            return Err(BadEnvelope::Signatures(wire.signatures.len()));
        };
        let decode = |text: &str, name| BASE64_STANDARD.decode(text).map_err(|_| BadEnvelope::Base64(name));
        Ok(Self {
            payload: decode(&wire.payload, "payload")?,
            keyid: signature.keyid.clone(),
            signature: decode(&signature.sig, "sig")?,
        })
    }

    /// As it is stored and sent: one line of JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Wire {
            payload: BASE64_STANDARD.encode(&self.payload),
            payload_type: PAYLOAD_TYPE.into(),
            signatures: vec![WireSignature { keyid: self.keyid.clone(), sig: BASE64_STANDARD.encode(&self.signature) }],
        })
    }

    /// Which key is said to have signed.
    pub fn keyid(&self) -> &str {
        &self.keyid
    }

    /// The payload, if its signature is this key's.
    pub fn verified_by(&self, key: &PublicKey) -> Option<&[u8]> {
        key.verifies(&pae(PAYLOAD_TYPE, &self.payload), &self.signature).then_some(&self.payload)
    }

    /// The payload, whoever signed it: for showing, never for believing.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// What the next statement calls this one. Of the payload, so that wrapping it anew does not break the chain.
    pub fn statement_digest(&self) -> Digest {
        Digest::of(&self.payload)
    }
}

/// DSSE's pre-authentication encoding: type and payload, each behind its length in bytes, so neither can pass for the other.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_encoding_is_the_specifications() {
        // The test vector of DSSE's protocol.md.
        let encoded = pae("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn envelopes_are_read_strictly() {
        let good = r#"{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":"k","sig":"AA=="}]}"#;
        assert_eq!(Envelope::parse(good.as_bytes()).unwrap().to_json().unwrap(), good);
        for (from, to, why) in [
            ("e30=", "e30", "payload is not base64"),
            ("e30=", "e31=", "payload is not base64"), // bits behind the end: a second text for the same bytes
            ("AA==", "A_==", "sig is not base64"),
            ("in-toto", "other", "payloadType"),
            ("[{", "[{\"keyid\":\"k\",\"sig\":\"\"},{", "2 signatures"),
            ("{\"keyid\":\"k\",\"sig\":\"AA==\"}", "", "0 signatures"),
            ("\"sig\"", "\"publicKey\":\"x\",\"sig\"", "publicKey"),
            ("{\"payload\"", "{\"publicKey\":\"x\",\"payload\"", "publicKey"),
            ("{\"payload\"", "{\"payload\":\"\",\"payload\"", "twice"),
            ("{\"keyid\"", "{\"keyid\":\"j\",\"keyid\"", "twice"),
            ("\"keyid\":\"k\",", "", "keyid"),
            ("]}", "]} x", "trailing"),
        ] {
            let error = Envelope::parse(good.replacen(from, to, 1).as_bytes()).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(Envelope::parse(&vec![b' '; MAX_BYTES + 1]), Err(BadEnvelope::TooLong));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            signature in proptest::collection::vec(any::<u8>(), 0..70),
            keyid in ".{0,50}",
        ) {
            let envelope = Envelope { payload, keyid, signature };
            prop_assert_eq!(Envelope::parse(envelope.to_json().unwrap().as_bytes()).unwrap(), envelope);
        }

        #[test]
        fn two_pairs_never_encode_alike(
            (a, b) in ("[a-z0-9 ]{0,12}", proptest::collection::vec(any::<u8>(), 0..12)),
            (c, d) in ("[a-z0-9 ]{0,12}", proptest::collection::vec(any::<u8>(), 0..12)),
        ) {
            prop_assert_eq!(pae(&a, &b) == pae(&c, &d), (a, b) == (c, d));
        }
    }
}
