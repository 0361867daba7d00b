# What is refused, where a version has errnos.
$ echo "image=tiny memory=64M name=$name" > vms/new && id=$(readlink vms/$name) && echo start > vms/$id/ctl && cat vms/$id/wait
running
$ echo start > vms/$id/state
...cannot create vms/.../state: Permission denied
$ echo x > vms/$id/nothing
...cannot create vms/.../nothing: Operation not permitted
$ rm -r vms/$id 2>&1 | grep -vc 'Operation not permitted$'
0
$ rm vms/$id/ctl
rm: cannot remove 'vms/.../ctl': Operation not permitted
$ rmdir vms/$id
rmdir: failed to remove 'vms/...': Device or resource busy
$ mkdir vms/mine
mkdir: cannot create directory 'vms/mine': Operation not permitted
$ mv vms/$id vms/mine
mv: cannot move 'vms/...' to 'vms/mine': Operation not permitted
$ touch vms/mine
touch: cannot touch 'vms/mine': Operation not permitted
$ chmod 600 vms/$id/ctl
chmod: changing permissions of 'vms/.../ctl': Operation not permitted
$ ln -s $id vms/mine
ln: failed to create symbolic link 'vms/mine': Operation not permitted
$ echo kill > vms/$id/ctl && cat vms/$id/wait
stopped
$ rmdir vms/$id
