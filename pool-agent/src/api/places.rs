//! Who is served over TCP at the same time: so many, and of one address so many of them, or whoever comes first keeps all others out.
//! An address is one as in [`super::limits`]. Loopback is nobody's: there a proxy brings everybody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::limits::network;

/// All places.
#[derive(Debug)]
pub struct Places {
    most: usize,
    of_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// All are taken.
    Full,
    /// This address has all that it may have.
    OfAddress,
}

impl NoPlace {
    /// The same in words.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Full => "as many callers are served over TCP as may be at the same time (api.concurrent)",
            Self::OfAddress => {
                "as many callers from this address are served as may be at the same time (api.concurrent_of_address)"
            }
        }
    }
}

impl Places {
    /// So many, and of one address so many of them; 0: all.
    pub fn new(most: usize, of_address: usize) -> Arc<Self> {
        let of_address = if of_address == 0 { most } else { of_address };
        Arc::new(Self { most, of_address, taken: Mutex::default() })
    }

    /// Takes one.
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, NoPlace> {
        let address = network(peer);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.most {
            return Err(NoPlace::Full);
        }
        let of_address = taken.by_address.entry(address).or_default();
        if *of_address >= self.of_address && !peer.to_canonical().is_loopback() {
            return Err(NoPlace::OfAddress);
        }
        *of_address += 1;
        taken.all += 1;
        Ok(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_address) = taken.by_address.get_mut(&self.address) {
            *of_address = of_address.saturating_sub(1);
            if *of_address == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_takes_all_places_and_a_place_that_is_left_is_anybodys() {
        let places = Places::new(4, 2);
        let take = |peer: &str| places.take(peer.parse().unwrap());
        let (_a, b) = (take("10.0.0.1").unwrap(), take("::ffff:10.0.0.1").unwrap());
        assert_eq!(take("10.0.0.1").err(), Some(NoPlace::OfAddress));
        let _c = take("2001:db8::1").unwrap();
        let _d = take("2001:db8::2").unwrap();
        assert_eq!(take("10.0.0.9").err(), Some(NoPlace::Full));
        drop(b);
        assert_eq!(take("2001:db8::3").err(), Some(NoPlace::OfAddress), "a /64 is one");
        assert!(take("10.0.0.1").is_ok());
        assert_eq!(places.taken.lock().unwrap().by_address.len(), 2, "what has no place is forgotten");
    }

    #[test]
    fn behind_a_proxy_on_the_node_everybody_is_one_address() {
        let places = Places::new(3, 1);
        let taken: Vec<_> = (0..3).map(|_| places.take("127.0.0.1".parse().unwrap()).unwrap()).collect();
        assert_eq!(places.take("10.0.0.1".parse().unwrap()).err(), Some(NoPlace::Full));
        drop(taken);
        let places = Places::new(3, 0);
        assert!((0..3).map(|_| places.take("10.0.0.1".parse().unwrap())).collect::<Vec<_>>().iter().all(Result::is_ok));
    }
}
