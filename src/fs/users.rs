//! `/users`: who is known, and what they may do.

use super::table::{Asked, Content, File, Kind, Maker, Object};
use super::verbs::{Act, Attributes, Verb};
use crate::engine::state::{Command, Kind as Entity, Operation, Role, State, User, UserId};
use crate::text::{Attr, Refusal, columns::Table, kv::KeyValues, name, time::rfc3339};

static FILES: &[File] = &[
    File { number: 1, name: "list", content: Content::Text(list), help: "one line a user" },
    File {
        number: 2,
        name: "new",
        content: Content::New(&MAKER),
        help: "write attributes, read the new user's number",
    },
];

static MAKER: Maker = Maker { right: Operation::Administer, command: new, usage };

static OBJECT_FILES: &[File] = &[
    File { number: 1, name: "ctl", content: Content::Ctl(VERBS), help: "verbs; reading it shows them" },
    File { number: 2, name: "status", content: Content::Text(status), help: "key value lines" },
];

pub(super) static KIND: Kind = Kind {
    number: 5,
    name: "users",
    files: FILES,
    object_files: OBJECT_FILES,
    numbered: false,
    find: |state, name| state.user_named(name).map(|u| u.id.0),
    object: |state, id| {
        let user = state.user(UserId(id))?;
        Some(Object {
            name: Some(user.name.clone()),
            owner: None,
            changed: user.changed,
            changed_seq: user.changed_seq,
        })
    },
    after: |state, after| {
        let named = |id: UserId| (id.0, state.user(id).map(|user| user.name.as_str()));
        Box::new(state.users_after(UserId(after)).map(named))
    },
    linked_after: |_, _| Box::new(std::iter::empty()),
    entity: Entity::User,
    delete: |_, _| None,
};

static VERBS: &[Verb] = &[Verb {
    name: "set",
    attributes: &["role", "uid"],
    help: "change role= (viewer, operator, admin) or uid=",
    act: Act::Command(|asked, attributes| {
        let user = user(asked)?;
        let (role, uid) = (attributes.parsed("role", str::parse)?, attributes.number("uid")?);
        if role.is_none() && uid.is_none() {
            return Err(Refusal::invalid("invalid set: there is no attribute to change; role and uid can be"));
        }
        Ok(Command::UserSet { name: user.name.clone(), role: role.unwrap_or(user.role), uid: uid.or(user.uid) })
    }),
}];

fn user<'a>(asked: &'a Asked<'_>) -> Result<&'a User, Refusal> {
    asked.state.user(UserId(asked.object)).ok_or_else(super::tree::gone)
}

fn status(asked: &Asked<'_>) -> Result<String, Refusal> {
    let user = user(asked)?;
    let text = KeyValues::new()
        .line("id", user.id)
        .line("name", &user.name)
        .line("role", user.role)
        .maybe("uid", user.uid)
        .line("changed", rfc3339(user.changed.millis()));
    Ok(text.print())
}

fn list(asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut table = Table::new(&["name", "id", "role", "uid"]);
    for user in asked.state.users() {
        let uid = user.uid.map(|u| u.to_string()).unwrap_or_default();
        table.row([user.name.clone(), user.id.to_string(), user.role.to_string(), uid]);
    }
    Ok(table.print())
}

fn usage(_state: &State) -> String {
    "# Write attr=value here, one user a line; read the number back on the same open file.\n\
     # name=NAME    letters a-z, digits, '.' and '-'; required\n\
     # role=viewer  viewer (reads), operator (makes objects and changes their own), admin (everything)\n\
     # uid=UID      who that is on the nodes; default: nobody\n"
        .to_owned()
}

fn new(attrs: &[Attr]) -> Result<Command, Refusal> {
    let attributes = Attributes::new(attrs, &["name", "role", "uid"], "users/new")?;
    let legal = |text: &str| name::check(text).map(|()| text.to_owned());
    let missing = || Refusal::invalid("invalid user: name= is missing; reading users/new shows what it takes");
    Ok(Command::UserNew {
        name: attributes.parsed("name", legal)?.ok_or_else(missing)?,
        role: attributes.parsed("role", str::parse)?.unwrap_or(Role::Viewer),
        uid: attributes.number("uid")?,
    })
}
