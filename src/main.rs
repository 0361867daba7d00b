//! The command line: `blixard serve` is a node, `blixard check-config` explains a configuration, everything else talks to a node.

use blixard::ca;
use blixard::cli;
use blixard::cluster;
use blixard::config::{self, Config};
use blixard::engine::host::fence;
use blixard::mount;
use blixard::restore;
use blixard::serve;
use blixard::text::Refusal;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// See Cargo.toml.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A cluster of machines as a file tree.
#[derive(Debug, Parser)]
#[command(name = "blixard", version, about, disable_help_subcommand = true)]
struct Line {
    #[command(flatten)]
    at: cli::At,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be a node: serve the tree, run VMs, until SIGINT or SIGTERM
    Serve {
        #[command(flatten)]
        flags: Flags,
        /// Go on although the log has lost commands that were acknowledged; what was lost is set aside
        #[arg(long)]
        accept_loss: bool,
        /// Join the cluster of this token, which 'blixard cluster invite' prints there; of no effect once it has joined
        #[arg(long, value_name = "TOKEN")]
        join: Option<String>,
        /// The name or address of this machine by which other nodes reach it, as alpha or 10.0.0.1!5640
        #[arg(long, value_name = "HOST[!PORT]")]
        advertise: Option<String>,
    },
    /// Begin a cluster, or let a machine into one
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Begin a new cluster from a backup, with this machine as its only node
    Restore(restore::Arguments),
    /// Mount a node's tree on a folder, for you alone, until SIGINT or SIGTERM
    Mount {
        /// The node, as tls!alpha!5640 (else that of --at), and the folder
        #[arg(num_args = 1..=2, required = true, value_names = ["DIAL", "DIR"])]
        place: Vec<String>,
    },
    /// Show the configuration, and every mistake in it
    CheckConfig(Flags),
    /// Be the parent of a machine's process, and end it when the node's lease is over; a node starts this itself
    #[command(hide = true)]
    Fence(Fence),
    /// The cluster's authority: certificates for users and nodes
    #[command(subcommand)]
    Ca(ca::Verb),
    #[command(flatten)]
    Verb(cli::Verb),
}

/// What a fence is told.
#[derive(Debug, Args)]
struct Fence {
    /// The file with the deadline
    #[arg(long, value_name = "FILE")]
    deadline: PathBuf,
    /// The tenure in which the machine is started
    #[arg(long, value_name = "NUMBER")]
    tenure: u64,
    /// The pipe for what has become of it
    #[arg(long, value_name = "FIFO")]
    tell: PathBuf,
    /// A cgroup to be in, with the machine
    #[arg(long, value_name = "DIR")]
    cgroup: Vec<PathBuf>,
    /// The machine's command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl From<Fence> for fence::Options {
    fn from(Fence { deadline, tenure, tell, cgroup, command }: Fence) -> fence::Options {
        fence::Options { deadline, tenure, tell, cgroups: cgroup, command }
    }
}

/// What a node is told. Without a flag the environment (BLIXARD_NAME, BLIXARD_DATA, ...) is asked, then the file.
#[derive(Debug, Args)]
struct Flags {
    /// The configuration; default: /etc/blixard.toml if it is there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node's name; default: the host's
    #[arg(long, value_name = "NODE")]
    name: Option<String>,
    /// Where everything is kept; default: /var/lib/blixard
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Where the tree is mounted; default: /n/blixard
    #[arg(long, value_name = "DIR")]
    mount: Option<String>,
    /// Where 9P is served, as unix!/run/blixard/sock, tls!*!5640 or tcp!127.0.0.1!564; may be given more than once
    #[arg(long, value_name = "DIAL")]
    listen: Vec<String>,
    /// Where it is served without asking who is there, as tcp!*!564: everybody may read there, nobody may write
    #[arg(long, value_name = "DIAL")]
    insecure_listen: Vec<String>,
    /// qemu or simulated
    #[arg(long, value_name = "HYPERVISOR")]
    hypervisor: Option<String>,
    /// Where images are; default: /var/lib/blixard/images
    #[arg(long, value_name = "DIR")]
    images: Option<String>,
    /// How much is traced: info, debug, blixard::fs=debug
    #[arg(long, value_name = "LEVEL")]
    trace: Option<String>,
    /// Trace as JSON
    #[arg(long)]
    json: bool,
}

impl From<Flags> for config::Options {
    fn from(flags: Flags) -> config::Options {
        config::Options {
            config: flags.config,
            name: flags.name,
            data: flags.data,
            mount: flags.mount,
            listen: flags.listen,
            insecure_listen: flags.insecure_listen,
            hypervisor: flags.hypervisor,
            images: flags.images,
            trace: flags.trace,
            json: flags.json,
        }
    }
}

fn say(text: impl std::fmt::Display) {
    // If stderr can't be written, there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "blixard: {text}");
}

fn print(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let line = Line::parse();
    let done = match line.command {
        Command::Verb(verb) => return cli::run(&line.at, &verb),
        Command::Fence(told) => return fence::run(&told.into()),
        Command::Serve { flags, accept_loss, join, advertise } => {
            let start = serve::Start { accept_loss, join, advertise, ..serve::Start::default() };
            load(flags).and_then(|config| serve::serve(&config, &start).map_err(|error| error.to_string()))
        }
        Command::Cluster(cluster::Verb::Invite { role, expires }) => {
            let attrs = vec![format!("role={role}"), format!("expires={expires}")];
            return cli::run(&line.at, &cli::Verb::New { kind: "nodes".to_owned(), attrs, wait: None });
        }
        Command::Cluster(cluster::Verb::Init { name, first }) => {
            let node = first.node.map_or_else(config::machine_name, Ok);
            let begun = node.and_then(|node| {
                cluster::init(&name, &first.data, &node, first.advertise.as_deref()).map_err(|error| error.to_string())
            });
            begun.and_then(|text| print(&text))
        }
        Command::Restore(arguments) => {
            let restored = restore::run(&arguments, config::machine_name).map_err(|error| error.to_string());
            restored.and_then(|text| print(&text))
        }
        Command::Mount { place } => mount_at(&line.at, &place),
        Command::CheckConfig(flags) => load(flags).and_then(|config| print(&config.print())),
        Command::Ca(verb) => match (ca::run(&verb).map_err(|error| error.to_string()), verb) {
            // Who is revoked is for the cluster to know.
            (Ok(text), ca::Verb::Revoke { name, .. }) => {
                let path = format!("users/{name}/ctl");
                let write = cli::Verb::Write { path, text: Some(text), append: false, wait: None };
                return cli::run(&line.at, &write);
            }
            (done, _) => done.and_then(|text| print(&text)),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(why);
            ExitCode::FAILURE
        }
    }
}

fn mount_at(at: &cli::At, place: &[String]) -> Result<(), String> {
    let (dial, folder) = match place {
        [folder] => (at.at.clone(), folder),
        [dial, folder, ..] => (dial.parse().map_err(|refusal: Refusal| refusal.sentence)?, folder),
        [] => return Err("which folder?".to_owned()),
    };
    mount::mount(&dial, at.options(), Path::new(folder)).map_err(|error| error.to_string())
}

fn load(flags: Flags) -> Result<Config, String> {
    Config::load(&flags.into(), std::env::vars_os()).map_err(|mistakes| mistakes.to_string())
}
