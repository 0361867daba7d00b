//! Networks: a bridge a pool, a tap a machine, by iproute2.
//!
//! Names are at most 15 letters (IFNAMSIZ): `bxTAG-pN` is the bridge of pool N, `bxTAG-N` the tap of VM N. The tag is made from the
//! data folder, so that two nodes on one host never touch each other's devices.

use super::{HostError, command::run};
use async_trait::async_trait;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

/// The network that a tap is put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The pool's number.
    pub pool: u64,
    /// The router's address with its prefix length: the bridge has it.
    pub gateway: Option<(IpAddr, u8)>,
}

/// Taps and what they hang on.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Makes the VM's tap on the network's bridge, owned by `uid`, and gives its name; None: there are no taps here.
    async fn make_tap(&self, vm: u64, network: &Network, uid: Option<u32>) -> Result<Option<String>, HostError>;
    /// Removes the VM's tap.
    async fn remove_tap(&self, vm: u64) -> Result<(), HostError>;
    /// The VMs for which there are taps.
    async fn taps(&self) -> Result<Vec<u64>, HostError>;
    /// Removes a pool's bridge.
    async fn remove_bridge(&self, pool: u64) -> Result<(), HostError>;
    /// Removes the bridges if nothing hangs on them.
    async fn remove_idle_bridges(&self) -> Result<(), HostError>;
    /// For `/nodes/NAME/status`.
    fn describe(&self) -> String;
}

/// A host where we may not make taps: QEMU's own user network.
#[derive(Debug, Clone, Copy)]
pub struct UserNet;

#[async_trait]
impl Net for UserNet {
    async fn make_tap(&self, _vm: u64, _network: &Network, _uid: Option<u32>) -> Result<Option<String>, HostError> {
        Ok(None)
    }
    async fn remove_tap(&self, _vm: u64) -> Result<(), HostError> {
        Ok(())
    }
    async fn taps(&self) -> Result<Vec<u64>, HostError> {
        Ok(Vec::new())
    }
    async fn remove_bridge(&self, _pool: u64) -> Result<(), HostError> {
        Ok(())
    }
    async fn remove_idle_bridges(&self) -> Result<(), HostError> {
        Ok(())
    }
    fn describe(&self) -> String {
        "user".to_owned()
    }
}

/// Bridges and taps of the kernel.
#[derive(Debug)]
pub struct Bridges {
    prefix: String,
    /// Two taps of one pool at once must not both make its bridge.
    making: tokio::sync::Semaphore,
}

const TUN: &str = "/dev/net/tun";
/// IFNAMSIZ less the NUL.
const NAME_BYTES_MAX: usize = 15;

impl Bridges {
    /// Checks that taps can be made here.
    ///
    /// # Errors
    /// No /dev/net/tun, no iproute2, or no right.
    pub async fn detect(tag: &str) -> Result<Bridges, HostError> {
        let mode = std::fs::metadata(TUN).map_err(|e| HostError::io(TUN, e))?.permissions();
        if mode.mode() & 0o006 != 0o006 {
            // As udev's own rule sets it on every Debian: what may be done with a tap depends on who owns the tap.
            std::fs::set_permissions(TUN, PermissionsExt::from_mode(0o666)).map_err(|e| HostError::io(TUN, e))?;
        }
        let bridges = Bridges { prefix: format!("bx{tag}-"), making: tokio::sync::Semaphore::new(1) };
        bridges.links().await?;
        Ok(bridges)
    }

    /// Our devices: (name, does it hang on another).
    async fn links(&self) -> Result<Vec<(String, bool)>, HostError> {
        let said = run("ip", &["-json", "link", "show"]).await?;
        let links: Vec<serde_json::Value> =
            serde_json::from_slice(&said).map_err(|e| HostError::io("ip -json link show", e))?;
        let ours = |link: &serde_json::Value| {
            let name = link.get("ifname")?.as_str()?;
            name.starts_with(&self.prefix).then(|| (name.to_owned(), link.get("master").is_some()))
        };
        Ok(links.iter().filter_map(ours).collect())
    }

    fn bridge(&self, pool: u64) -> String {
        format!("{}p{pool}", self.prefix)
    }

    /// Removes a device; one that is not there is no error.
    async fn remove(&self, device: &str) -> Result<(), HostError> {
        match run("ip", &["link", "delete", device]).await {
            Err(error) if error.0.contains("Cannot find device") => Ok(()),
            other => other.map(drop),
        }
    }

    async fn make_bridge(&self, network: &Network) -> Result<String, HostError> {
        let bridge = self.bridge(network.pool);
        let _alone = self.making.acquire().await.map_err(|_| HostError("the node is going down".to_owned()))?;
        if !self.links().await?.iter().any(|(name, _)| *name == bridge) {
            run("ip", &["link", "add", &bridge, "type", "bridge"]).await?;
        }
        if let Some((gateway, prefix)) = network.gateway {
            run("ip", &["address", "replace", &format!("{gateway}/{prefix}"), "dev", &bridge]).await?;
        }
        run("ip", &["link", "set", &bridge, "up"]).await?;
        Ok(bridge)
    }
}

#[async_trait]
impl Net for Bridges {
    async fn make_tap(&self, vm: u64, network: &Network, uid: Option<u32>) -> Result<Option<String>, HostError> {
        let tap = format!("{}{vm}", self.prefix);
        if tap.len() > NAME_BYTES_MAX {
            return Err(HostError(format!(
                "the tap's name {tap} is longer than the {NAME_BYTES_MAX} letters that the kernel takes"
            )));
        }
        let bridge = self.make_bridge(network).await?;
        // One that an earlier life left may have another owner.
        self.remove_tap(vm).await?;
        let owner = uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()).to_string();
        run("ip", &["tuntap", "add", "dev", &tap, "mode", "tap", "user", &owner]).await?;
        run("ip", &["link", "set", &tap, "master", &bridge, "up"]).await?;
        Ok(Some(tap))
    }

    async fn remove_tap(&self, vm: u64) -> Result<(), HostError> {
        self.remove(&format!("{}{vm}", self.prefix)).await
    }

    async fn taps(&self) -> Result<Vec<u64>, HostError> {
        let number = |(name, _): (String, bool)| name.strip_prefix(&self.prefix)?.parse().ok();
        Ok(self.links().await?.into_iter().filter_map(number).collect())
    }

    async fn remove_bridge(&self, pool: u64) -> Result<(), HostError> {
        self.remove(&self.bridge(pool)).await
    }

    async fn remove_idle_bridges(&self) -> Result<(), HostError> {
        let links = self.links().await?;
        if links.iter().any(|(_, hangs)| *hangs) {
            return Ok(());
        }
        for (bridge, _) in links {
            run("ip", &["link", "delete", &bridge]).await?;
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("bridges {}p*", self.prefix)
    }
}
