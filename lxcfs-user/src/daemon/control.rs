//! The control socket: one request line, one answer, for `lxcfs status`, `top`, `cat` and `upgrade`.
//!
//! Requests are `status`, `status text`, `survey`, `cat PID FILE` and `upgrade [PATH]`; an answer is `ok` or `error TEXT`
//! on a line, and behind `ok` the bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::status::Status;
use crate::error::{Errno, Error, Result};
use crate::road::Road;

/// The longest request line.
const LONGEST_REQUEST: u64 = 8_192;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same where another daemon has to start first.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(90);

/// Opens the socket. Only root may connect: answers tell about every container.
///
/// # Errors
/// The directory or the socket cannot be made.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    make_room(path)?;
    UnixListener::bind(path).map_err(|error| Error::std("listen on", path, &error))
}

/// Makes the directory of a socket, root's alone, and takes away what is in the socket's place.
pub(super) fn make_room(path: &Path) -> Result<()> {
    let failed = |operation| move |error: std::io::Error| Error::std(operation, path, &error);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(directory, private).map_err(failed("protect the directory of"))?;
    }
    // One left by a crash: the pidfile's lock says that nobody listens on it any more.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("replace")(error)),
        _ => Ok(()),
    }
}

/// A wish for another program in our place.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// Which; the one we are, if it was not named.
    pub(super) program: Option<PathBuf>,
    /// Told whether it is ready to take over.
    pub(super) answer: oneshot::Sender<Result<(), String>>,
    /// Ends when the answer has gone out.
    pub(super) answered: oneshot::Receiver<()>,
}

/// Answers requests for ever.
pub(super) async fn serve(
    listener: UnixListener,
    road: Arc<Road>,
    status: Arc<Status>,
    upgrades: mpsc::Sender<Upgrade>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("accept on the control socket: {error}");
                // Out of descriptors, most likely: trying at once would only burn the CPU.
                tokio::time::sleep(PATIENCE).await;
                continue;
            }
        };
        let (road, status, upgrades) = (Arc::clone(&road), Arc::clone(&status), upgrades.clone());
        tokio::spawn(async move {
            let conversation = converse(stream, road, status, upgrades);
            let answered = tokio::time::timeout(UPGRADE_PATIENCE, conversation).await;
            if let Ok(Err(error)) = answered {
                tracing::debug!("answer on the control socket: {error}");
            }
        });
    }
}

async fn converse(
    mut stream: tokio::net::UnixStream,
    road: Arc<Road>,
    status: Arc<Status>,
    upgrades: mpsc::Sender<Upgrade>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let (reader, mut writer) = stream.split();
    let mut reader = reader.take(LONGEST_REQUEST);
    let read = async {
        while !request.contains(&b'\n') && reader.read_buf(&mut request).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    tokio::time::timeout(PATIENCE, read).await??;
    // Kept until the answer has gone out: we end after an upgrade.
    let (_answering, answered) = oneshot::channel();
    let answer = match request.strip_prefix(b"upgrade") {
        Some(program) => Ok(upgrade(program, &upgrades, answered).await),
        // Making a page reads files: not on the thread that waits for signals.
        None => tokio::task::spawn_blocking(move || answer(&request, &road, &status)).await,
    };
    let text = match answer.unwrap_or_else(|_| Err("the request panicked".to_owned())) {
        Ok(bytes) => [b"ok\n", bytes.as_slice()].concat(),
        Err(error) => format!("error {error}\n").into_bytes(),
    };
    writer.write_all(&text).await
}

async fn upgrade(
    program: &[u8],
    upgrades: &mpsc::Sender<Upgrade>,
    written: oneshot::Receiver<()>,
) -> Result<Vec<u8>, String> {
    use std::os::unix::ffi::OsStrExt;
    let program = std::ffi::OsStr::from_bytes(program.trim_ascii());
    let program = (!program.is_empty()).then(|| PathBuf::from(program));
    let (answer, answered) = oneshot::channel();
    let lost = "the daemon is ending";
    upgrades
        .send(Upgrade { program, answer, answered: written })
        .await
        .map_err(|_| lost.to_owned())?;
    answered.await.unwrap_or_else(|_| Err(lost.to_owned())).map(|()| Vec::new())
}

fn answer(request: &[u8], road: &Road, status: &Status) -> Result<Vec<u8>, String> {
    let request = String::from_utf8_lossy(request);
    let mut words = request.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("status"), None, None) => {
            serde_json::to_vec(&status.now(road)).map_err(|error| error.to_string())
        }
        (Some("survey"), None, None) => {
            let survey = road.survey().map_err(|error| error.to_string())?;
            serde_json::to_vec(&survey).map_err(|error| error.to_string())
        }
        (Some("status"), Some("text"), None) => Ok(status.now(road).to_string().into_bytes()),
        (Some("cat"), Some(pid), Some(file)) => {
            let pid = pid.parse().map_err(|_| format!("{pid} is no pid"))?;
            let text = road.text(&file.parse()?, pid);
            text.map(|text| text.to_vec()).map_err(|error| error.to_string())
        }
        _ => Err("unknown request".to_owned()),
    }
}

/// Asks the daemon behind `socket`. `Ok(None)`: no daemon is there.
///
/// # Errors
/// It is there and cannot be asked, or says that it cannot answer.
pub fn ask(socket: &Path, request: &str) -> Result<Option<Vec<u8>>> {
    let failed = |operation| move |error: std::io::Error| Error::std(operation, socket, &error);
    let mut stream = match UnixStream::connect(socket) {
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        connected => connected.map_err(failed("connect to"))?,
    };
    let patience = if request.starts_with("upgrade") { UPGRADE_PATIENCE } else { PATIENCE };
    stream.set_read_timeout(Some(patience)).map_err(failed("use"))?;
    writeln!(stream, "{request}").map_err(failed("ask"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(failed("read the answer of"))?;
    match answer.strip_prefix(b"ok\n") {
        Some(bytes) => Ok(Some(bytes.to_vec())),
        None => {
            let text = String::from_utf8_lossy(&answer);
            let cause = text.trim().trim_start_matches("error ").to_owned();
            Err(Error::because("ask", socket, Errno::IO, cause))
        }
    }
}

/// The same where nothing can be done without a daemon.
///
/// # Errors
/// As for [`ask`], and when no daemon is there.
pub fn ask_running(socket: &Path, request: &str) -> Result<Vec<u8>> {
    ask(socket, request)?.ok_or_else(|| {
        Error::because("ask", socket, Errno::NOENT, "no lxcfs is running there")
            .hint("start it with `lxcfs MOUNTPOINT`, or name its mount point")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_daemon_is_no_error() {
        assert!(ask(Path::new("/nonexistent/lxcfs.sock"), "status").unwrap().is_none());
    }
}
