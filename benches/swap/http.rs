//! As little HTTP/1.1 as it takes: the generator shares the machine with the server, so it must cost little.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;

use tokio::net::TcpStream;

/// A connection that is kept, with the answer that came last.
pub(crate) struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        Ok(Self { address, stream: connect(address).await?, answer: Vec::new() })
    }

    /// Makes it anew, after an error.
    pub(crate) async fn again(&mut self) -> Result<()> {
        self.stream = connect(self.address).await?;
        Ok(())
    }

    /// Sends a whole request: the status and the body of its answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Result<(u16, &[u8])> {
        let mut sent = 0;
        while sent < request.len() {
            match self.stream.try_write(&request[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        self.answer.clear();
        loop {
            if let Some((status, body)) = whole(&self.answer)? {
                return Ok((status, &self.answer[body..]));
            }
            self.stream.readable().await?;
            let mut bytes = [0; 8_192];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Err(Error::new(ErrorKind::UnexpectedEof, "the connection was closed")),
                Ok(count) => self.answer.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The status of an answer and where its body begins, once it is there as a whole.
fn whole(answer: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let unlike = || Error::new(ErrorKind::InvalidData, "no answer of HTTP/1.1 with a length");
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| unlike())?;
    let status = head.get(9..12).and_then(|text| text.parse().ok()).ok_or_else(unlike)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let body = end + 4;
    Ok((answer.len() >= body + length.ok_or_else(unlike)?).then_some((status, body)))
}

/// A request with a body of JSON; `headers` are whole lines.
pub(crate) fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: swap\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n");
    format!("{head}{headers}\r\n{body}").into_bytes()
}
