use super::*;

#[test]
fn only_198_18_to_198_19_stand_for_names() {
    for (address, stands) in
        [("198.17.255.255", false), ("198.18.0.1", true), ("198.19.255.255", true), ("198.20.0.0", false)]
    {
        assert_eq!(is_synthetic(address.parse().unwrap()), stands, "{address}");
    }
}

#[test]
fn an_accept_that_fails_ends_the_gate_only_where_the_listener_is_unusable() {
    for (errno, shortage, connections) in [
        (Errno::EMFILE, true, true),
        (Errno::ENOBUFS, true, true),
        (Errno::ECONNABORTED, false, true),
        (Errno::EPROTO, false, true),
        (Errno::ENETDOWN, false, true),
        (Errno::EBADF, false, false),
        (Errno::EINVAL, false, false),
    ] {
        let error = io::Error::from(errno);
        assert_eq!((is_shortage(&error), is_connections(&error)), (shortage, connections), "{errno}");
    }
}

#[test]
fn a_sandbox_takes_no_more_than_its_places_and_gives_them_back() {
    let open = Open::new(&Metrics::default());
    let [a, b] = ["a", "b"].map(|id| SandboxKey { namespace: "default".to_owned(), id: id.to_owned() });
    let first = open.take(&a, 1, 2).unwrap();
    assert!(open.take(&a, 1, 2).is_none(), "of its own");
    let second = open.take(&b, 1, 2).unwrap();
    assert!(open.take(&b, 2, 2).is_none(), "of all");
    drop(first);
    let _again = open.take(&a, 1, 2).unwrap();
    drop(second);
    assert_eq!(open.lock().1.len(), 1, "what has none left is forgotten");
    assert_eq!(open.shown.get(), 1);
}
