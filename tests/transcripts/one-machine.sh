# A machine from nothing to running and back. Each line that begins with "$ " is typed into a shell whose working
# folder is the tree; what follows is what it prints, with ... for what differs from run to run.
$ id=$(blixard new vms name=web image=tiny cpus=1 memory=128M)
$ cat vms/$id/state
defined
$ echo start > vms/$id/ctl
$ cat vms/$id/wait
running
$ readlink vms/web
1
$ grep -E '^(state|node|cpus|memory|generation) ' vms/web/status
state running
...
$ blixard cat vms/web/events | grep -m 1 -o 'guest ready'
guest ready
$ grep -c 'blixard: ready' vms/web/log
1
$ echo start > vms/$id/ctl && echo nothing changed
nothing changed
$ echo fly > vms/$id/ctl 2>/dev/null || tail -n 1 err
...fly...
$ rmdir vms/$id 2>/dev/null || echo it runs
it runs
$ echo stop > vms/$id/ctl
$ cat vms/$id/wait
stopped
$ echo delete > vms/$id/ctl
$ test -e vms/web || echo gone
gone
