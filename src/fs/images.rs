//! `/images`: what VMs boot from.

use super::table::{Asked, Content, File, Kind, Object};
use super::verbs::{Act, Verb};
use crate::engine::state::{Command, Image, Kind as Entity, State};
use crate::text::{Refusal, columns::Table, kv::KeyValues, size, time::rfc3339};

static FILES: &[File] = &[File { number: 1, name: "list", content: Content::Text(list), help: "one line an image" }];

static OBJECT_FILES: &[File] = &[
    File { number: 1, name: "ctl", content: Content::Ctl(VERBS), help: "verbs; reading it shows them" },
    File { number: 2, name: "status", content: Content::Text(status), help: "key value lines" },
];

fn by_id(state: &State, id: u64) -> Option<&Image> {
    state.images().find(|i| i.id.0 == id)
}

pub(super) static KIND: Kind = Kind {
    number: 4,
    name: "images",
    files: FILES,
    object_files: OBJECT_FILES,
    numbered: false,
    find: |state, name| state.image_named(name).map(|i| i.id.0),
    object: |state, id| {
        let image = by_id(state, id)?;
        Some(Object {
            name: Some(image.name.clone()),
            owner: None,
            changed: image.changed,
            changed_seq: image.changed_seq,
        })
    },
    after: |state, after| {
        let images = state.images().map(|image| (image.id.0, Some(image.name.as_str())));
        let mut later: Vec<_> = images.filter(|(id, _)| *id > after).collect();
        later.sort_unstable();
        Box::new(later.into_iter())
    },
    linked_after: |_, _| Box::new(std::iter::empty()),
    entity: Entity::Image,
    delete: |state, id| by_id(state, id).map(|i| Command::ImageForget { name: i.name.clone() }),
};

static VERBS: &[Verb] = &[Verb {
    name: "delete",
    attributes: &[],
    help: "forget the image; not while a VM uses it. Its files stay, and the next start of the node finds them again",
    act: Act::Command(|asked, _| Ok(Command::ImageForget { name: image(asked)?.name.clone() })),
}];

fn image<'a>(asked: &'a Asked<'_>) -> Result<&'a Image, Refusal> {
    by_id(asked.state, asked.object).ok_or_else(super::tree::gone)
}

/// The nodes that have it.
fn names(state: &State, image: &Image) -> String {
    let names = image.nodes.iter().filter_map(|id| state.node(*id)).map(|node| node.name.as_str());
    names.collect::<Vec<_>>().join(",")
}

fn status(asked: &Asked<'_>) -> Result<String, Refusal> {
    let image = image(asked)?;
    let text = KeyValues::new()
        .line("id", image.id)
        .line("name", &image.name)
        .line("size", size::print(image.size_bytes))
        .line("sha256", &image.sha256)
        .line("nodes", names(asked.state, image))
        .line("created", rfc3339(image.created.millis()))
        .line("changed", rfc3339(image.changed.millis()));
    Ok(text.print())
}

fn list(asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut table = Table::new(&["name", "id", "size", "nodes", "sha256"]);
    for image in asked.state.images() {
        table.row([
            image.name.clone(),
            image.id.to_string(),
            size::print(image.size_bytes),
            names(asked.state, image),
            image.sha256.clone(),
        ]);
    }
    Ok(table.print())
}
