//! Talking to the keeper of a running container: a socket whose name has the container's id, one order there and one
//! byte back. The name is abstract: nothing of it stays behind on disk. Since everybody on the host may connect, an
//! order comes with the name of the container's directory, which only those know who may read the store.

use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::cli::Failure;
use crate::store::Store;
use crate::store::container::Container;

/// Have everything that was written reach the layers.
pub const SYNC: u8 = b's';
/// End what runs.
pub const KILL: u8 = b'k';
/// It was done.
pub const DONE: u8 = b'd';
/// How long a killed container may take to go.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

fn address(id: &str) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("rovl-run-{id}"))
}

/// The keeper's end.
pub fn listen(id: &str) -> std::io::Result<UnixListener> {
    UnixListener::bind_addr(&address(id)?)
}

/// The order that somebody gives who knows the container's directory; `None`: it isn't to be trusted.
pub fn read_order(stream: &mut UnixStream, container: &Container) -> std::io::Result<Option<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut order = vec![0; 1 + container.mount_id.len()];
    stream.read_exact(&mut order)?;
    let (order, known) = match order.split_first() {
        Some((order, known)) => (*order, known),
        None => return Ok(None),
    };
    Ok((known == container.mount_id.as_bytes()).then_some(order))
}

/// `None`: nobody keeps it.
fn ask(container: &Container, order: u8) -> std::io::Result<Option<u8>> {
    let mut stream = match UnixStream::connect_addr(&address(&container.id)?) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(None),
        other => other?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[&[order], container.mount_id.as_bytes()].concat())?;
    let mut answer = [0];
    Ok(match stream.read(&mut answer)? {
        0 => None,
        _ => answer.first().copied(),
    })
}

/// Has everything that a running container has written so far reach its layers.
pub fn sync(container: &Container) -> Result<(), Failure> {
    let failed =
        |why: &str| Failure::failed(format!("syncing container {}: {why}", container.short()));
    match ask(container, SYNC) {
        Ok(None | Some(DONE)) => Ok(()),
        Ok(Some(_)) => Err(failed("its keeper could not")),
        Err(error) => Err(failed(&error.to_string())),
    }
}

/// Ends what runs in a container, and waits until nobody uses it any more.
pub fn kill(store: &Store, container: &Container) -> Result<(), Failure> {
    match ask(container, KILL) {
        Ok(_) => {}
        Err(error) => return Err(ending(container, &error.to_string())),
    }
    let start = Instant::now();
    while !store.is_container_free(container)? {
        if start.elapsed() > PATIENCE {
            return Err(ending(container, "it is still in use"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn ending(container: &Container, why: &str) -> Failure {
    Failure::failed(format!("ending container {}: {why}", container.short()))
}
