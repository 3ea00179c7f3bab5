//! Users and groups as an image names them: `USER[:GROUP]`, each a name or a number, looked up in the image's own
//! /etc/passwd and /etc/group.

/// Who runs a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub uid: u32,
    /// The group's id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// The home directory, where /etc/passwd tells.
    pub home: Option<String>,
}

/// Why a user can't be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("no user {0} in the image's /etc/passwd")]
    User(String),
    /// No such group.
    #[error("no group {0} in the image's /etc/group")]
    Group(String),
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// Name, id and members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// Finds who `wanted` is; nothing stands for root.
pub fn find(wanted: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let account = accounts(passwd)
        .find(|account| account.name == user)
        .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
    let (uid, gid) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(number)) => (number, 0),
        (None, None) => return Err(UserError::User(user.to_owned())),
    };
    let name = account.as_ref().map(|account| account.name);
    let home = account
        .as_ref()
        .map(|account| account.home.to_owned())
        .filter(|home| !home.is_empty());
    let Some(wanted_group) = wanted_group else {
        let is_member = |members: &str| name.is_some_and(|n| members.split(',').any(|m| m == n));
        let groups = groups(group)
            .filter(|(_, id, members)| *id != gid && is_member(members))
            .map(|(_, id, _)| id)
            .collect();
        return Ok(User {
            uid,
            gid,
            groups,
            home,
        });
    };
    let gid = groups(group)
        .find(|(name, _, _)| *name == wanted_group)
        .map(|(_, id, _)| id)
        .or_else(|| wanted_group.parse().ok())
        .ok_or_else(|| UserError::Group(wanted_group.to_owned()))?;
    Ok(User {
        uid,
        gid,
        groups: Vec::new(),
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbad\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nadm:x:4:x,web\n";

    fn found(wanted: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        find(wanted, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(found(""), Ok((0, 0, vec![])));
        assert_eq!(found("web"), Ok((33, 34, vec![4])));
        assert_eq!(found("33"), Ok((33, 34, vec![4])));
        assert_eq!(found("web:adm"), Ok((33, 4, vec![])));
        assert_eq!(found("1000"), Ok((1000, 0, vec![])));
        assert_eq!(found("1000:1001"), Ok((1000, 1001, vec![])));
        assert_eq!(found("who"), Err(UserError::User("who".into())));
        assert_eq!(found("0:who"), Err(UserError::Group("who".into())));
        let home = find("web", PASSWD, GROUP).unwrap().home;
        assert_eq!(home.as_deref(), Some("/srv"));
    }
}
