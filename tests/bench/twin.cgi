#!/usr/bin/perl
# What survey.cgi does, as one would write it in Perl: CGI.pm, flock, append, fsync, the summary.
use strict;
use warnings;
use CGI;
use Fcntl qw(:flock);
use IO::Handle;
use POSIX qw(strftime);
use Time::HiRes qw(time);

my $cgi = CGI->new;
my $dir = "$ENV{SERVER_GATHER}/twin";
mkdir $dir unless -d $dir;
my $now = time;
my $agent = substr($cgi->user_agent // '', 0, 512);
$agent =~ s/(["\\])/\\$1/g;
$agent =~ s/([\x00-\x1f])/sprintf('\\u%04x', ord $1)/ge;
my $id = join '', map { sprintf '%08x', rand 2**32 } 1 .. 3;
open my $lock, '>>', "$ENV{SERVER_GATHER}/twin.lock" or die "lock: $!";
flock $lock, LOCK_EX or die "flock: $!";
open my $out, '>>', "$dir/" . strftime('%Y-%m-%d', gmtime $now) . '.jsonl' or die "open: $!";
print $out qq({"id":"$id","time":$now,"agent":"$agent"}\n);
$out->flush;
$out->sync or die "fsync: $!";
close $out or die "close: $!";
close $lock;
my $page = '';
if (open my $in, '<', "$ENV{DOCUMENT_ROOT}/survey/summary.html") { local $/; $page = <$in>; close $in }
print $cgi->header(-type => 'text/html', -charset => 'utf-8', -Content_Length => length $page), $page;
