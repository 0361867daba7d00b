# Debian's 9mount, and a mount of a part of the tree.
$ mkdir /n/nine && 9mount "tcp!10.0.2.2!$port" /n/nine && tail -n 1 /n/nine/me && umount /n/nine
dialect 9P2000
$ 9mount -u "tcp!10.0.2.2!$port" /n/nine && tail -n 1 /n/nine/me
dialect 9P2000.L
$ echo "image=tiny memory=64M name=part" > /n/nine/vms/new && id=$(readlink /n/nine/vms/part)
$ mkdir /n/part && 9mount -u -a "vms/$id" "tcp!10.0.2.2!$port" /n/part && cd /n/part && cat state && ls -a | head -n 3
defined
.
..
console
$ cd .. && ls | sort && cd / && echo delete > /n/part/ctl && cat /n/part/state
9p2000
9p2000.L
9p2000.u
nine
part
cat: /n/part/state: No such file or directory
$ umount /n/part && umount /n/nine && mount | grep -c 'type 9p'
0
