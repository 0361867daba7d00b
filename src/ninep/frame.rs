//! Messages in a stream of bytes. [`Input`] gathers what arrives until messages are whole and shows them where they lie;
//! [`Output`] gathers what is to be sent, large data without a copy, and sends it with as few system calls as it can.

use super::dialect::Dialect;
use super::field::Malformed;
use super::message::{HEADER_BYTES, Header, Reply, Request, append_data_header};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// The room that a read finds at least, in bytes: many small messages, or the start of a large one. A buffer grows by what
/// has arrived, never by what a message says of itself.
const READ_BYTES_MIN: usize = 8 * 1024;
/// A buffer that had to hold more than this is given back when it is empty, in bytes.
const KEPT_BYTES_MAX: usize = 256 * 1024;
/// Data at least this long is sent from where it lies instead of being copied behind its header, in bytes.
const UNCOPIED_BYTES_MIN: usize = 4 * 1024;
/// The most pieces in one writev(2): beyond a few dozen there is nothing to be won.
const PIECES_MAX: usize = 32;

/// Received bytes, of which the front may be whole messages.
#[derive(Debug, Default)]
pub struct Input {
    buffer: BytesMut,
    /// It has held more than [`KEPT_BYTES_MAX`].
    grown: bool,
}

impl Input {
    /// The next message if it is whole: its header and what follows it. It stays until [`Input::consume`].
    ///
    /// # Errors
    /// [`Malformed::Size`]: the stream can't be understood any further. It is seen as soon as the size is here.
    pub fn message(&self, size_max: u32) -> Result<Option<(Header, &[u8])>, Malformed> {
        let Some(size) = self.buffer.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)) else {
            return Ok(None);
        };
        let length = usize::try_from(size).ok().filter(|l| *l >= HEADER_BYTES && size <= size_max);
        let Some(message) = self.buffer.get(..length.ok_or(Malformed::Size { size, size_max })?) else {
            return Ok(None);
        };
        Ok(Some((Header::decode(message)?, message.get(HEADER_BYTES..).unwrap_or_default())))
    }

    /// Passes over the message with this header.
    pub fn consume(&mut self, header: Header) {
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        self.buffer.advance(size.min(self.buffer.len()));
        if self.buffer.is_empty() && std::mem::take(&mut self.grown) {
            self.buffer = BytesMut::new();
        }
    }

    /// Receives more; 0 is the end of the stream.
    pub fn poll_fill(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let length = self.buffer.len();
        if self.buffer.capacity().saturating_sub(length) < READ_BYTES_MIN / 2 {
            self.buffer.reserve(length.max(READ_BYTES_MIN));
        }
        // `read_buf` keeps nothing between two polls, so that it can be made anew for each.
        let count = ready!(pin!(stream.read_buf(&mut self.buffer)).poll(context))?;
        self.grown |= self.buffer.len() > KEPT_BYTES_MAX;
        Poll::Ready(Ok(count))
    }
}

/// What is to be sent.
#[derive(Debug, Default)]
pub struct Output {
    /// Pieces before the tail, none of them empty.
    pieces: VecDeque<Bytes>,
    /// Small messages, one behind the other.
    tail: BytesMut,
    /// The bytes of `pieces`.
    length: usize,
}

impl Output {
    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.length + self.tail.len()
    }

    /// Nothing waits?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a reply; on an error nothing.
    ///
    /// # Errors
    /// As those of [`Reply::encode`].
    pub fn reply(&mut self, dialect: Dialect, tag: u16, reply: &Reply<'_>) -> Result<(), Malformed> {
        reply.encode(dialect, tag, &mut self.tail)
    }

    /// Appends a request; on an error nothing.
    ///
    /// # Errors
    /// As those of [`Request::encode`].
    pub fn request(&mut self, dialect: Dialect, tag: u16, request: &Request<'_>) -> Result<(), Malformed> {
        request.encode(dialect, tag, &mut self.tail)
    }

    /// Appends an Rread or an Rreaddir; on an error nothing. Long data is not copied.
    ///
    /// # Errors
    /// [`Malformed::TooLong`]
    pub fn data(&mut self, kind: u8, tag: u16, data: Bytes) -> Result<(), Malformed> {
        append_data_header(kind, tag, data.len(), &mut self.tail)?;
        if data.len() < UNCOPIED_BYTES_MIN {
            self.tail.extend_from_slice(&data);
        } else {
            let before = self.tail.split().freeze();
            self.length += before.len() + data.len();
            self.pieces.extend([before, data]);
        }
        Ok(())
    }

    /// Sends some of it; the answer is how much.
    pub fn poll_send(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let sent = if self.pieces.is_empty() {
            ready!(Pin::new(stream).poll_write(context, &self.tail))?
        } else {
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            let waiting = self.pieces.iter().map(Bytes::as_ref).chain([self.tail.as_ref()]);
            let count = slices.iter_mut().zip(waiting).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
            ready!(Pin::new(stream).poll_write_vectored(context, slices.get(..count).unwrap_or_default()))?
        };
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(sent);
        Poll::Ready(Ok(sent))
    }

    /// Sends all of it, and what a layer below, such as TLS, has taken and not sent yet.
    pub fn poll_send_all(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            ready!(self.poll_send(stream, context))?;
        }
        Pin::new(stream).poll_flush(context)
    }

    fn advance(&mut self, mut sent: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let taken = sent.min(piece.len());
            piece.advance(taken);
            self.length -= taken;
            sent -= taken;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.tail.advance(sent.min(self.tail.len()));
        if self.tail.is_empty() && self.tail.capacity() > KEPT_BYTES_MAX {
            self.tail = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::BufWriter;

    #[tokio::test]
    async fn what_a_layer_below_holds_back_is_sent_too() {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        // As TLS does, it takes more than it sends.
        let mut stream = BufWriter::new(ours);
        let mut output = Output::default();
        let data = Bytes::from(vec![7; UNCOPIED_BYTES_MIN]);
        output.data(117, 1, data).unwrap();
        let length = output.len();
        poll_fn(|context| output.poll_send_all(&mut stream, context)).await.unwrap();
        let mut received = vec![0; length];
        let reading = theirs.read_exact(&mut received);
        assert_eq!(futures::FutureExt::now_or_never(reading).unwrap().unwrap(), length);
    }
}
