//! `/users`: who is known, and what they may do.

use super::table::{Asked, Content, File, Kind, Maker, Object};
use super::verbs::{Act, Attributes, Verb};
use crate::engine::state::{Command, Kind as Entity, Operation, Role, State, User, UserId, VmId};
use crate::text::{Attr, Refusal, attrs::shown, columns::Table, kv::KeyValues, name, time::rfc3339};

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
    delete: |state, id| state.user(UserId(id)).map(|u| Command::UserDelete { name: u.name.clone() }),
};

static VERBS: &[Verb] = &[
    Verb {
        name: "set",
        attributes: &["role", "uid", "within"],
        help: "change the role, the uid, or the VMs that the user is confined to: within=vms/1,vms/2, or within='' for none",
        act: Act::Command(|asked, attributes| {
            let user = user(asked)?;
            let (role, uid) = (attributes.parsed("role", str::parse)?, attributes.number("uid")?);
            let within = attributes.parsed("within", |text| vms(asked.state, text))?;
            if role.is_none() && uid.is_none() && within.is_none() {
                return Err(Refusal::invalid(
                    "invalid set: there is no attribute to change; role, uid and within can be",
                ));
            }
            let (name, role, uid) = (user.name.clone(), role.unwrap_or(user.role), uid.or(user.uid));
            Ok(match within {
                Some(within) => Command::UserSetWithin { name, role, uid, within },
                None => Command::UserSet { name, role, uid },
            })
        }),
    },
    Verb {
        name: "revoke",
        attributes: &["cert"],
        help: "take the certificate cert=SERIAL no more, and end the connections that came in by it",
        act: Act::Command(|asked, attributes| {
            let missing =
                || Refusal::invalid("invalid revoke: cert= is missing; 'blixard ca list' shows the serial numbers");
            let serial = attributes.text("cert").ok_or_else(missing)?.to_lowercase();
            Ok(Command::CertificateRevoke { name: user(asked)?.name.clone(), serial })
        }),
    },
    Verb {
        name: "delete",
        attributes: &[],
        help: "forget the user, and end their connections; their objects stay, and are the next one's of this name",
        act: Act::Command(|asked, _| Ok(Command::UserDelete { name: user(asked)?.name.clone() })),
    },
];

/// The VMs of `within=`: paths of their directories, by number or name.
fn vms(state: &State, text: &str) -> Result<Vec<VmId>, Refusal> {
    let one = |path: &str| {
        let name = path.trim_matches('/').strip_prefix("vms/").ok_or_else(|| {
            Refusal::invalid(format!("invalid path '{}': within= takes VMs, as vms/1,vms/web", shown(path)))
        })?;
        let numbered = name.parse().ok().map(VmId).filter(|id| state.vm(*id).is_some());
        let found = numbered.or_else(|| state.vm_named(name).map(|vm| vm.id));
        found.ok_or_else(|| Refusal::not_found(format!("'{}' was not found", shown(path))))
    };
    text.split(',').filter(|path| !path.is_empty()).map(one).collect()
}

/// As `within=` has it; None: not confined.
pub(super) fn within(state: &State, user: &str) -> Option<String> {
    let paths = |within: &[VmId]| within.iter().map(|id| format!("vms/{id}")).collect::<Vec<_>>().join(",");
    state.within(user).map(paths)
}

fn user<'a>(asked: &'a Asked<'_>) -> Result<&'a User, Refusal> {
    asked.state.user(UserId(asked.object)).ok_or_else(super::tree::gone)
}

fn status(asked: &Asked<'_>) -> Result<String, Refusal> {
    let user = user(asked)?;
    let revoked = asked.state.access(&user.name).map(|access| access.revoked.join(",")).filter(|all| !all.is_empty());
    let text = KeyValues::new()
        .line("id", user.id)
        .line("name", &user.name)
        .line("role", user.role)
        .maybe("uid", user.uid)
        .maybe("within", within(asked.state, &user.name))
        .maybe("revoked", revoked)
        .line("changed", rfc3339(user.changed.millis()));
    Ok(text.print())
}

fn list(asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut table = Table::new(&["name", "id", "role", "uid", "within"]);
    for user in asked.state.users() {
        let uid = user.uid.map(|u| u.to_string()).unwrap_or_default();
        let within = within(asked.state, &user.name).unwrap_or_default();
        table.row([user.name.clone(), user.id.to_string(), user.role.to_string(), uid, within]);
    }
    Ok(table.print())
}

fn usage(_state: &State) -> String {
    "# Write attr=value here, one user a line; read the number back on the same open file.\n\
     # name=NAME    letters a-z, digits, '.' and '-'; required\n\
     # role=viewer  viewer (reads), operator (makes objects and changes their own), admin (everything)\n\
     # uid=UID      who that is on the nodes; default: nobody\n\
     # within=VMS   all that the user sees, as vms/1,vms/2; default: everything\n"
        .to_owned()
}

fn new(state: &State, attrs: &[Attr]) -> Result<Command, Refusal> {
    let attributes = Attributes::new(attrs, &["name", "role", "uid", "within"], "users/new")?;
    let legal = |text: &str| name::check(text).map(|()| text.to_owned());
    let missing = || Refusal::invalid("invalid user: name= is missing; reading users/new shows what it takes");
    let name = attributes.parsed("name", legal)?.ok_or_else(missing)?;
    let role = attributes.parsed("role", str::parse)?.unwrap_or(Role::Viewer);
    let uid = attributes.number("uid")?;
    Ok(match attributes.parsed("within", |text| vms(state, text))?.filter(|within| !within.is_empty()) {
        Some(within) => Command::UserNewWithin { name, role, uid, within },
        None => Command::UserNew { name, role, uid },
    })
}
