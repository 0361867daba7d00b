//! The rooms: who may import what. Reads the sources and fails on an import that the architecture forbids.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use syn::visit::Visit;

/// A room, and the rooms of this crate that it may name (itself aside).
struct Room {
    /// Its modules: this one and all below it. The most specific room that fits a file counts.
    path: &'static str,
    /// What it may name of this crate, by prefix.
    may: &'static [&'static str],
}

const ROOMS: &[Room] = &[
    Room { path: "text", may: &[] },
    Room { path: "clock", may: &["text"] },
    Room { path: "durable", may: &[] },
    Room { path: "mutants", may: &[] },
    Room { path: "ipam", may: &["text", "clock"] },
    Room { path: "ninep", may: &["text", "clock"] },
    Room { path: "engine::state", may: &["text", "clock", "ipam"] },
    Room { path: "engine::log", may: &["durable", "text", "clock"] },
    Room { path: "engine::hypervisor", may: &["engine::host", "text"] },
    Room { path: "engine::host", may: &["text"] },
    Room { path: "engine::agent", may: &["durable", "engine", "text", "clock", "ipam"] },
    Room {
        path: "engine",
        may: &["durable", "engine::state", "engine::log", "engine::hypervisor", "text", "clock", "ipam"],
    },
    Room { path: "fs::fuse", may: &["fs::tree", "text"] },
    Room { path: "fs::remote", may: &["fs::fuse", "fs::tree", "ninep", "text"] },
    Room { path: "fs::ninep", may: &["fs::tree", "fs::sessions", "ninep", "text", "clock"] },
    Room { path: "fs::sessions", may: &["fs::tree", "text", "clock"] },
    Room { path: "fs", may: &["fs::sessions", "engine", "ipam", "ninep", "text", "clock"] },
    Room { path: "config", may: &["text", "clock"] },
    Room { path: "cli", may: &["ninep", "text"] },
    Room { path: "ca", may: &["durable", "ninep", "text", "clock"] },
    // The top: puts the rooms together.
    Room { path: "peers", may: &["ninep", "text", "clock"] },
    Room { path: "member", may: &["durable", "peers", "text"] },
    Room { path: "cluster", may: &["ca", "durable", "member", "peers", "ninep", "text"] },
    Room {
        path: "serve",
        may: &["config", "ca", "cluster", "member", "peers", "fs", "engine", "ninep", "ipam", "text", "clock"],
    },
    Room { path: "mount", may: &["fs::fuse", "fs::remote", "ninep", "text"] },
    Room { path: "restore", may: &["ca", "cluster", "member", "peers", "engine", "text"] },
    Room {
        path: "main",
        may: &["config", "ca", "cli", "cluster", "engine::host::fence", "mount", "restore", "serve", "text"],
    },
    Room { path: "lib", may: &[""] },
];

/// Outside crates that only these rooms may name.
const KEPT: &[(&str, &[&str])] = &[
    ("hiqlite", &["engine::log::hiqlite"]),
    ("polyfuse", &["fs::fuse"]),
    ("clap", &["ca", "cli", "cluster", "main", "restore", "serve"]),
    ("reqwest", &["engine::log::hiqlite"]),
    ("rustls", &["ninep"]),
    ("rcgen", &["ca"]),
    ("toml", &["config", "member", "engine::agent", "engine::host"]),
];

/// Rooms that never wait and never touch the world, and what they may therefore not name.
const PURE: &[&str] = &["engine::state", "ipam", "text", "clock"];
const WAITS: &[&str] = &[
    "tokio",
    "tokio_util",
    "futures",
    "async_trait",
    "hiqlite",
    "polyfuse",
    "qapi",
    "rustix::fs",
    "rustix::process",
    "rustix::net",
    "std::fs",
    "std::os",
    "std::process",
    "std::thread",
    "std::net::TcpStream",
    "std::net::UdpSocket",
];
/// What would make two nodes differ: forbidden to the state machine and its pools.
const DIFFERS: &[&str] = &[
    "std::collections::HashMap",
    "std::collections::HashSet",
    "std::time",
    "std::env",
    "imbl::HashMap",
    "imbl::HashSet",
];

fn below(path: &str, room: &str) -> bool {
    room.is_empty() || path == room || path.strip_prefix(room).is_some_and(|rest| rest.starts_with("::"))
}

fn room_of(path: &str) -> Option<&'static Room> {
    ROOMS.iter().filter(|r| below(path, r.path)).max_by_key(|r| r.path.len())
}

fn sources() -> Vec<PathBuf> {
    fn gather(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                gather(&path, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                into.push(path);
            }
        }
    }
    let mut files = Vec::new();
    gather(&root(), &mut files);
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// `src/engine/log/mod.rs` is `engine::log`.
fn module(file: &Path) -> String {
    let path = file.strip_prefix(root()).unwrap().with_extension("");
    let mut parts: Vec<_> = path.iter().map(|p| p.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|p| p == "mod") {
        parts.pop();
    }
    parts.join("::")
}

/// Gathers every path that a file names outside its tests, made absolute.
struct Names {
    module: Vec<String>,
    found: BTreeSet<String>,
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| match &a.meta {
        syn::Meta::Path(p) => p.is_ident("test"),
        syn::Meta::List(l) => {
            l.path.is_ident("cfg")
                && l.tokens.to_string().split(|c: char| !c.is_alphanumeric()).any(|word| word == "test")
        }
        syn::Meta::NameValue(_) => false,
    })
}

impl Names {
    fn add(&mut self, parts: &[String]) {
        let supers = parts.iter().take_while(|p| *p == "super").count();
        let absolute: Vec<String> = match parts.first().map(String::as_str) {
            Some("crate" | "blixard") => ["crate".into()].into_iter().chain(parts[1..].iter().cloned()).collect(),
            Some("self") => {
                ["crate".into()].into_iter().chain(self.module.clone()).chain(parts[1..].iter().cloned()).collect()
            }
            Some("super") => {
                let up = self.module.len().saturating_sub(supers);
                let base = self.module[..up].iter().cloned();
                ["crate".into()].into_iter().chain(base).chain(parts[supers..].iter().cloned()).collect()
            }
            _ => parts.to_vec(),
        };
        self.found.insert(absolute.join("::"));
    }

    fn tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(p) => self.tree(&with(&p.ident), &p.tree),
            syn::UseTree::Name(n) => self.add(&with(&n.ident)),
            syn::UseTree::Rename(r) => self.add(&with(&r.ident)),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(g) => g.items.iter().for_each(|t| self.tree(before, t)),
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&[], &item.tree);
        }
    }
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.add(&path.segments.iter().map(|s| s.ident.to_string()).collect::<Vec<_>>());
        }
        syn::visit::visit_path(self, path);
    }
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            self.module.push(item.ident.to_string());
            syn::visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }
}

/// What is wrong with a file of this module and text: one sentence each.
fn faults(module: &str, text: &str) -> Vec<String> {
    let Some(room) = room_of(module) else {
        return vec![format!("{module} is in no room: which one does it belong to?")];
    };
    let file = syn::parse_file(text).unwrap_or_else(|e| panic!("{module}: {e}"));
    let path = if ["lib", "main"].contains(&module) { vec![] } else { module.split("::").map(str::to_owned).collect() };
    let mut names = Names { module: path, found: BTreeSet::new() };
    names.visit_file(&file);
    names.found.iter().filter_map(|name| fault(module, room, name)).collect()
}

fn fault(module: &str, room: &Room, name: &str) -> Option<String> {
    if let Some(own) = name.strip_prefix("crate::") {
        let target = room_of(own)?;
        // Faults can be planted anywhere.
        let planted = target.path == "mutants";
        let allowed =
            planted || target.path == room.path || room.may.iter().any(|m| below(target.path, m) || below(own, m));
        return (!allowed).then(|| format!("{module} names {own}: {} may not know {}", room.path, target.path));
    }
    let outside = name.split("::").next().unwrap_or_default();
    let kept = KEPT.iter().find(|(crate_, by)| *crate_ == outside && !by.iter().any(|b| below(module, b)));
    if let Some((kept, by)) = kept {
        return Some(format!("{module} names {name}: only {by:?} may know {kept}"));
    }
    if PURE.iter().any(|p| below(module, p)) && WAITS.iter().any(|w| below(name, w)) {
        return Some(format!("{module} names {name}, but it is to be pure"));
    }
    let replicated = below(module, "engine::state") || below(module, "ipam");
    (replicated && DIFFERS.iter().any(|d| below(name, d)))
        .then(|| format!("{module} names {name}, which is not the same on every node"))
}

#[test]
fn the_sources_keep_to_their_rooms() {
    let files = sources();
    assert!(files.len() > 15, "the sources were not found");
    let all: Vec<_> =
        files.iter().flat_map(|file| faults(&module(file), &std::fs::read_to_string(file).unwrap())).collect();
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn a_forbidden_import_is_seen() {
    let seen = |module: &str, text: &str| !faults(module, text).is_empty();
    assert!(seen("engine::state::vm", "use tokio::sync::Notify;"));
    assert!(seen("engine::state::vm", "fn f() { let _ = std::time::Instant::now(); }"));
    assert!(seen("engine::state::vm", "use super::super::agent::Agent;"));
    assert!(seen("engine::state", "use crate::{text::Refusal, engine::log::Log};"));
    assert!(seen("ipam", "use std::collections::HashMap;"));
    assert!(seen("fs::vms", "use hiqlite::Client;"));
    assert!(seen("fs::fuse", "use crate::engine::Engine;"));
    assert!(seen("text::size", "use crate::clock::HybridTime;"));
    assert!(seen("ninep::client", "use crate::fs::tree::Tree;"));
    assert!(seen("engine", "use crate::engine::agent::Agent;"));
    assert!(seen("somewhere", ""));
    assert!(!seen("engine::state::vm", "use super::VmId; use crate::text::{Refusal, Code}; use crate::ipam::Ipam;"));
    assert!(!seen("engine::state::vm", "#[cfg(test)] mod tests { use std::collections::HashMap; }"));
    assert!(!seen("fs::vms", "use crate::engine::{Engine, state::Vm}; use super::tree::Tree;"));
}

#[test]
fn unsafe_code_is_in_one_file_at_most() {
    let text = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
    let with: Vec<_> = sources().into_iter().filter(|f| text(f).contains("allow(unsafe_code)")).collect();
    assert!(with.len() <= 1, "unsafe code in {with:?}");
    for file in with {
        assert!(module(&file).starts_with("engine::log::hiqlite"), "unsafe code in {file:?}");
        assert!(text(&file).contains("SAFETY:"), "{file:?} has no proof");
    }
}
