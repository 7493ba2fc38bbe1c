//! A connection whose other end has to read its answers. One that reads nothing for too long is closed, so that nobody holds
//! answers in memory by not taking them.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// How long nothing at all of an answer may be taken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct SlowReader<S> {
    stream: S,
    /// When it is over, while something waits to be taken.
    over: Pin<Box<Sleep>>,
    waits: bool,
}

impl<S> SlowReader<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, over: Box::pin(tokio::time::sleep(WRITE_TIMEOUT)), waits: false }
    }

    /// What a write gives, or an error where nothing was taken for too long.
    fn watched<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = false;
            return written;
        }
        if !self.waits {
            self.waits = true;
            self.over.as_mut().reset(Instant::now() + WRITE_TIMEOUT);
        }
        match self.over.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SlowReader<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SlowReader<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watched(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watched(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_left_and_who_reads_slowly_is_not() {
        let (ours, theirs) = duplex(16);
        let mut writer = SlowReader::new(ours);
        let begun = Instant::now();
        let error = writer.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, WRITE_TIMEOUT));
        drop(theirs);

        let (ours, mut theirs) = duplex(16);
        let mut writer = SlowReader::new(ours);
        let reading = tokio::spawn(async move {
            let mut read = 0;
            while read < 100 {
                tokio::time::sleep(WRITE_TIMEOUT / 2).await;
                read += theirs.read(&mut [0; 16]).await.unwrap();
            }
        });
        writer.write_all(&[0; 100]).await.unwrap();
        reading.await.unwrap();
    }
}
