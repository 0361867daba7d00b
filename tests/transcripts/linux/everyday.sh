# Everyday use through Linux's own 9P client, in each of its three versions. Typed at the console of a machine into which
# the tree is mounted; $name is a name that is free, and the shell is Debian's. Linux fills the whole buffer of a read(2) before
# it gives any of it, so that a `cat` of a live stream shows its lines late; the shell's own `read` asks for a byte at a time.
$ exec 3<>vms/new; echo "image=tiny memory=64M name=$name" >&3; read id <&3; exec 3<&-; cat vms/$id/state
defined
$ cat me
user root
role admin
...
$ ls vms/$id | cat
console
ctl
events
...
wait
why
$ ls -l vms/$id/ctl vms/$id/state
-rw-rw-rw- 1 ... vms/.../ctl
-r--r--r-- 1 ... 8 ... vms/.../state
$ ls -lR . > /tmp/listing && grep -c '^total' /tmp/listing
...
$ find . -name state -o -name new | sort
./ipam/new
./nodes/new
./users/new
...
./vms/new
$ echo start > vms/$id/ctl; cat vms/$id/wait
running
$ grep -E '^(state|memory|generation) ' vms/$id/status
state running
generation 1
memory 64M
$ echo start >> vms/$id/ctl && echo nothing changed
nothing changed
$ printf '# a comment\nstart\r\n' > vms/$id/ctl && echo taken
taken
$ echo -n start > vms/$id/ctl && echo taken
taken
$ echo fly > vms/$id/ctl; echo $?; tail -n 1 err
...echo: I/O error
1
...invalid verb 'fly'...
$ cat nowhere
cat: nowhere: No such file or directory
$ cat vms
cat: vms: Is a directory
$ cp vms/$id/status /tmp/status && cat vms/$id/status | cmp - /tmp/status && stat -c %s vms/$id/status > /tmp/size && wc -c < /tmp/status | cmp - /tmp/size && echo the same
the same
$ dd if=README of=/tmp/readme bs=100 2>/dev/null && cat README | cmp - /tmp/readme && echo the same
the same
$ tail -n 1 README > /tmp/last && tail -n 1 /tmp/readme | cmp - /tmp/last && tail -c 20 README | wc -c
20
$ du -s vms/$id > /dev/null && df . | tail -n 1
10.0.2.2 ...
$ printf 'start\n' | dd of=vms/$id/ctl bs=64k conv=fsync 2>/dev/null && echo taken
taken
$ cp vms/$id/spec vms/new && twin=$(ls vms | grep -x '[0-9]*' | sort -n | tail -n 1); cat vms/$twin/spec | cmp - vms/$id/spec && echo the same
the same
$ rmdir vms/$twin && cat vms/$twin/state
cat: vms/.../state: No such file or directory
$ rm -rf vms 2>/dev/null; cat vms/$id/state
running
$ for n in $(seq 100); do cat vms/$id/status > /tmp/status.$n & done; wait; cat /tmp/status.* | wc -c > /tmp/all; echo $(($(wc -c < /tmp/status) * 100)) | cmp - /tmp/all && echo a hundred
a hundred
$ trap : INT; announce & cat vms/$id/events > /tmp/events; echo $?
press ^C
130
$ cat events > /tmp/events & reader=$!; blocked $reader; kill -KILL $reader; wait $reader; echo $?
...
137
$ cat vms/events > /tmp/events & reader=$!; blocked $reader; kill -TERM $reader; wait $reader; echo $?
...
143
$ cat vms/$id/state
running
$ while read -r line; do echo "$line"; case $line in *stopped*) break ;; esac; done < vms/$id/events > /tmp/events & reader=$!
$ echo kill > vms/$id/ctl; cat vms/$id/wait
stopped
$ wait $reader; tail -n 1 /tmp/events
...stopped...
$ rmdir vms/$id; cat vms/$id/state
cat: vms/.../state: No such file or directory
