//! Bytes that are made where reading or writing blocks, on a thread of its own, chunk by chunk; so that whoever sends them can wait
//! for other things too. The thread ends with its bytes, with who takes them, or with the program.

use std::io::{self, Read, Write};
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;

/// As much as a pipe holds.
const CHUNK: usize = 64 * 1024;
/// So many chunks wait to be taken; then whoever makes them waits.
const WAITING: usize = 4;

/// What is made; after an error nothing follows.
pub type Chunks = mpsc::Receiver<io::Result<Bytes>>;

/// What stands at stdin.
pub fn stdin() -> Chunks {
    let (sender, chunks) = mpsc::channel(WAITING);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let chunk = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let last = chunk.is_err();
            if sender.blocking_send(chunk).is_err() || last {
                break;
            }
        }
    });
    chunks
}

/// What `work` writes.
pub fn written_by(work: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Chunks {
    let (sender, chunks) = mpsc::channel(WAITING);
    thread::spawn(move || {
        let mut buffered = io::BufWriter::with_capacity(CHUNK, Sink(sender.clone()));
        if let Err(error) = work(&mut buffered).and_then(|()| buffered.flush()) {
            let _ = sender.blocking_send(Err(error)); // nobody takes them any more
        }
    });
    chunks
}

struct Sink(mpsc::Sender<io::Result<Bytes>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(mut chunks: Chunks) -> (Vec<u8>, Option<io::Error>) {
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.blocking_recv() {
            match chunk {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(error) => return (bytes, Some(error)),
            }
        }
        (bytes, None)
    }

    #[test]
    fn what_is_written_arrives_in_order_and_so_does_the_error_behind_it() {
        let text: Vec<u8> = (0..=255).cycle().take(5 * CHUNK + 7).collect();
        let written = text.clone();
        let (bytes, error) = taken(written_by(move |out| out.write_all(&written)));
        assert!(bytes == text && error.is_none());
        let (bytes, error) = taken(written_by(|out| {
            out.write_all(b"begun")?;
            out.flush()?;
            Err(io::Error::other("gone"))
        }));
        assert_eq!((&*bytes, error.map(|e| e.to_string())), (b"begun".as_slice(), Some("gone".into())));
    }
}
