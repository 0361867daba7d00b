//! QEMU's command line: the fewest devices, and nothing that it may do beyond them.

use super::{Accelerator, files};
use crate::engine::hypervisor::{Machine, Nic};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Descriptors that the process is started with (`launch.rs`): three listening sockets and the files to boot.
pub(super) const MONITOR_FD: u32 = 0;
pub(super) const CONSOLE_FD: u32 = 1;
pub(super) const CHANNEL_FD: u32 = 5;
pub(super) const KERNEL_FD: u32 = 3;
pub(super) const INITRD_FD: u32 = 4;

/// The name of the guest's end of the channel.
pub(super) const CHANNEL_NAME: &str = "org.blixard.agent.0";

/// The arguments after the program's name. Paths are relative to the run folder or descriptors: the process may not be able
/// to enter the folders above.
pub(super) fn arguments(machine: &Machine, accelerator: Accelerator) -> Vec<String> {
    let mut line = Line(Vec::new());
    line.add("-name", format!("guest={},debug-threads=on", escape(&machine.run_dir.display().to_string())));
    line.add("-uuid", machine.uuid.clone());
    line.flag("-nodefaults").flag("-no-user-config");
    line.add("-display", "none");
    line.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    match accelerator {
        Accelerator::Kvm => line.add("-accel", "kvm").add("-cpu", "host"),
        Accelerator::Tcg => line.add("-accel", "tcg,thread=multi").add("-cpu", "max"),
    };
    line.add("-machine", "q35,vmport=off,graphics=off,usb=off,smm=off,sata=off");
    line.add("-m", format!("{}M", machine.memory_bytes >> 20));
    line.add("-smp", machine.cpus.to_string());
    // A guest that goes off leaves its process, so that the reason is known whenever somebody looks; its reset is a reboot.
    line.add("-action", "reboot=reset,shutdown=pause,panic=none");
    line.add("-kernel", format!("/proc/self/fd/{KERNEL_FD}"));
    line.add("-initrd", format!("/proc/self/fd/{INITRD_FD}"));
    line.add("-append", kernel_arguments(machine, accelerator));
    line.add("-chardev", format!("socket,id=monitor,fd={MONITOR_FD},server=on,wait=off"));
    line.add("-mon", "chardev=monitor,mode=control");
    let log = format!("logfile={},logappend=on", files::CONSOLE_LOG);
    line.add("-chardev", format!("socket,id=console,fd={CONSOLE_FD},server=on,wait=off,{log}"));
    line.add("-serial", "chardev:console");
    line.add("-chardev", format!("socket,id=channel,fd={CHANNEL_FD},server=on,wait=off"));
    line.add("-device", "virtio-serial-pci,max_ports=2");
    line.add("-device", format!("virtserialport,chardev=channel,name={CHANNEL_NAME}"));
    if let Some(disk) = &machine.disk {
        line.add(
            "-blockdev",
            format!(
                "driver=qcow2,node-name=disk,file.driver=file,file.filename={}",
                escape(&from_run_dir(disk, &machine.run_dir).display().to_string())
            ),
        );
        // A disk that fails is the guest's to see: by default QEMU stops the guest when the host's file system is full.
        line.add("-device", "virtio-blk-pci,drive=disk,werror=report,rerror=report");
    }
    if let Some(nic) = &machine.nic {
        match &nic.tap {
            Some(tap) => line.add("-netdev", format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off")),
            None => line.add("-netdev", user_network(nic)),
        };
        // Without an option ROM: nobody boots from it.
        line.add("-device", format!("virtio-net-pci,netdev=net,mac={},romfile=", nic.mac));
    }
    line.0
}

/// QEMU's user network, given the guest's own network, so that its address and its gateway mean there what they mean on a bridge.
/// A network too small for the four addresses that QEMU wants in it stays QEMU's own: the guest is then alone.
fn user_network(nic: &Nic) -> String {
    let mut words = vec!["user,id=net".to_owned()];
    let of_gateway = |network: IpNetwork| nic.gateways.iter().find(|g| network.contains(**g)).copied();
    for (address, prefix) in &nic.addresses {
        let Ok(network) = IpNetwork::new(*address, *prefix) else { continue };
        match (network, of_gateway(network)) {
            (IpNetwork::V4(v4), Some(IpAddr::V4(host))) if *prefix <= 29 => {
                let (net, dns) = (v4.network(), spare_v4(v4, host));
                words.push(format!("net={net}/{prefix},host={host},dhcpstart={address},dns={dns}"));
            }
            (IpNetwork::V6(v6), Some(IpAddr::V6(host))) if *prefix <= 125 => {
                let (net, dns) = (v6.network(), spare_v6(v6, host));
                words.push(format!("ipv6-prefix={net},ipv6-prefixlen={prefix},ipv6-host={host},ipv6-dns={dns}"));
            }
            _ => {}
        }
    }
    words.join(",")
}

/// An address for QEMU's own name server: the last one that is neither the guest's nor its gateway's.
fn spare_v4(of_guest: Ipv4Network, gateway: Ipv4Addr) -> Ipv4Addr {
    let last = u32::from(of_guest.broadcast());
    let free = |a: &Ipv4Addr| *a != of_guest.ip() && *a != gateway;
    (1..=3).map(|back| Ipv4Addr::from(last.wrapping_sub(back))).find(free).unwrap_or(gateway)
}

/// As [`spare_v4`].
fn spare_v6(of_guest: Ipv6Network, gateway: Ipv6Addr) -> Ipv6Addr {
    let last = u128::from(of_guest.broadcast());
    let free = |a: &Ipv6Addr| *a != of_guest.ip() && *a != gateway;
    (1..=3).map(|back| Ipv6Addr::from(last.wrapping_sub(back))).find(free).unwrap_or(gateway)
}

/// A VM's disk lies beside its run folders: the way there by `..` needs no right on the folders above.
fn from_run_dir(disk: &Path, run_dir: &Path) -> PathBuf {
    let beside = run_dir.parent().and_then(|of_vm| disk.strip_prefix(of_vm).ok());
    beside.map_or_else(|| disk.to_owned(), |disk| Path::new("..").join(disk))
}

struct Line(Vec<String>);

impl Line {
    fn add(&mut self, option: &str, value: impl Into<String>) -> &mut Line {
        self.0.extend([option.to_owned(), value.into()]);
        self
    }

    fn flag(&mut self, option: &str) -> &mut Line {
        self.0.push(option.to_owned());
        self
    }
}

/// A comma within a value of QEMU's is written twice.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

fn kernel_arguments(machine: &Machine, accelerator: Accelerator) -> String {
    let mut words = vec!["console=ttyS0".to_owned(), machine.cmdline.clone()];
    if accelerator == Accelerator::Tcg {
        // What the kernel would otherwise measure, slowly, against timers that emulation makes worse.
        words.push("no_timer_check".to_owned());
        if let Some(khz) = steady_tsc_khz() {
            words.push(format!("tsc_early_khz={khz} lpj={} tsc=reliable", khz * 4));
        }
    }
    if let Some(nic) = &machine.nic {
        words.extend(nic.addresses.iter().map(|(address, prefix)| format!("blixard.ip={address}/{prefix}")));
        words.extend(nic.gateways.iter().map(|gateway| format!("blixard.gw={gateway}")));
    }
    words.join(" ")
}

/// The rate of the host's time stamp counter, which QEMU's emulation hands through. /proc/cpuinfo has it only where the clock
/// never changes: in a virtual machine. Elsewhere it shows the momentary clock of the core, and there KVM is used anyway.
fn steady_tsc_khz() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = |key: &str| info.lines().find(|l| l.starts_with(key)).and_then(|l| l.split_once(": ")).map(|(_, v)| v);
    let flags = value("flags")?;
    if !["hypervisor", "constant_tsc"].iter().all(|f| flags.split(' ').any(|flag| flag == *f)) {
        return None;
    }
    // "2596.122": megahertz with three decimals.
    value("cpu MHz")?.replace('.', "").parse().ok().filter(|khz| (500_000..10_000_000).contains(khz))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_network_is_the_guests_own() {
        let nic = |addresses: &[(&str, u8)], gateways: &[&str]| Nic {
            tap: None,
            mac: "52:54:00:00:00:01".into(),
            addresses: addresses.iter().map(|(a, prefix)| (a.parse().unwrap(), *prefix)).collect(),
            gateways: gateways.iter().map(|g| g.parse().unwrap()).collect(),
        };
        let v4 = "user,id=net,net=10.42.0.0/16,host=10.42.0.1,dhcpstart=10.42.0.7,dns=10.42.255.254";
        assert_eq!(user_network(&nic(&[("10.42.0.7", 16)], &["10.42.0.1"])), v4);
        let crowded = "user,id=net,net=10.0.0.0/29,host=10.0.0.6,dhcpstart=10.0.0.5,dns=10.0.0.4";
        assert_eq!(user_network(&nic(&[("10.0.0.5", 29)], &["10.0.0.6"])), crowded);
        let v6 = "user,id=net,ipv6-prefix=fd00:1::,ipv6-prefixlen=64,ipv6-host=fd00:1::1,ipv6-dns=fd00:1::ffff:ffff:ffff:fffe";
        assert_eq!(user_network(&nic(&[("fd00:1::2", 64)], &["fd00:1::1"])), v6);
        assert_eq!(user_network(&nic(&[("10.0.0.1", 31)], &["10.0.0.0"])), "user,id=net");
        assert_eq!(user_network(&nic(&[("10.0.0.5", 24)], &[])), "user,id=net");
    }

    #[test]
    fn commas_in_folders_stay_in_the_folder() {
        let machine = Machine {
            vm: 1,
            generation: 1,
            uuid: "00000000-0000-0000-0000-000000000001".into(),
            cpus: 1,
            memory_bytes: 128 << 20,
            kernel: "kernel".into(),
            initrd: "initrd".into(),
            cmdline: "quiet".into(),
            disk: Some("/a,b/di,sk".into()),
            nic: Some(Nic {
                tap: None,
                mac: "52:54:00:00:00:01".into(),
                addresses: vec![("10.42.0.2".parse().unwrap(), 16)],
                gateways: vec!["10.42.0.1".parse().unwrap()],
            }),
            run_dir: "/a,b/1".into(),
            run_as: None,
            cgroups: Vec::new(),
            fence: None,
        };
        let line = arguments(&machine, Accelerator::Kvm).join(" ");
        assert!(line.contains("guest=/a,,b/1,debug-threads=on"), "{line}");
        assert!(line.contains("file.filename=../di,,sk"), "{line}");
        assert!(line.contains("blixard.ip=10.42.0.2/16 blixard.gw=10.42.0.1"), "{line}");
        assert!(!line.contains("tsc_early_khz"), "only for emulation: {line}");
    }
}
