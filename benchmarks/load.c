/* The load tool: one thread, N keep-alive connections, one prepared request; checks every answer, prints one JSON line.
 *
 * Closed loop: each connection asks again when its answer is complete, for --seconds after --warmup, or --requests in all.
 * --hold: each connection asks once; they are opened --rate a second, and {"open": N} is printed once all have their first byte.
 * --leave: such a share of the clients goes away, at a random byte of the answer, or when --patience ends before its first byte.
 * An answer is exact when its status is 200, its end is a clean one and its body has the expected bytes (script.h), the nonce of
 * this very request among them. --content compares what a client reads instead, for gateways that write the events anew. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "script.h"

#define SECOND 1000000000ull
#define HEAD_MAX 16384

#define FINE 10                 /* bits below the highest one that is set: a bucket is 0.1 % wide */

struct histogram {
    uint64_t buckets[64 << FINE]; /* of nanoseconds */
    uint64_t count, most;
};

enum framing { COUNTED, SIZE_LINE, CHUNK, CHUNK_END, TRAILER, TO_END };

struct connection {
    int fd, open, asking, first_seen;
    uint32_t nonce;
    size_t sent;                 /* of the request */
    uint64_t started;
    char *kept;                  /* an unfinished head; with --content, an unfinished event or the whole body */
    size_t kept_size, kept_room;
    enum framing framing;
    int in_head, last_answer;
    uint64_t left;               /* of the chunk or of the counted body */
    size_t at;                   /* bytes of the expected body seen, or of the expected content */
    uint32_t event;              /* the next expected one */
    int done_seen;
    size_t leave_at;             /* closes after so many bytes of the body; 0: stays to the end */
    int impatient;               /* closes when its patience ends before the first byte */
    char line[24];
    int line_size;
};

static struct {
    const char *host, *path, *key, *model;
    char headers[8192];
    int port, connections, hold, content, usage;
    double seconds, warmup, rate, leave, patience, timeout;
    uint64_t requests;
    unsigned seed;
} asked = {.host = "127.0.0.1", .path = "/v1/chat/completions", .key = "none", .model = "whole-600-0", .connections = 1, .seconds = 2, .rate = 500, .timeout = 60, .seed = 1};

static int poller;
static struct sockaddr_in address;
static struct script script;
static struct body expected;
static char *wanted;             /* the expected content, zeros for the nonces, and where those are */
static size_t wanted_size, *wanted_nonce, wanted_nonces;
static char *request;
static size_t request_size, request_nonce;
static struct connection *connections;
static uint64_t now, window_start, window_end, first_start, last_end;
static struct histogram latency, first_byte;
static uint64_t begun, exact, wrong, failed, left_early, in_window, events_in_window, events_all, next_nonce;
static int open_now, with_first;
static char mistake[400];
static char inbox[256 << 10];

static uint64_t clock_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * SECOND + (uint64_t)at.tv_nsec;
}

static void histogram_add(struct histogram *histogram, uint64_t ns) {
    unsigned shift = 63 - FINE - (unsigned)__builtin_clzll(ns | 1u << FINE);
    histogram->buckets[((uint64_t)shift << FINE) + (ns >> shift)]++;
    histogram->count++;
    if (ns > histogram->most) histogram->most = ns;
}

/* In microseconds: the middle of the bucket in which the share lies. */
static double histogram_at(const struct histogram *histogram, double share) {
    uint64_t rank = (uint64_t)((double)histogram->count * share), seen = 0;
    for (unsigned at = 0; at < sizeof histogram->buckets / sizeof *histogram->buckets; at++) {
        seen += histogram->buckets[at];
        if (seen <= rank) continue;
        unsigned shift = at < 2u << FINE ? 0 : (at >> FINE) - 1;
        uint64_t low = (uint64_t)(at - (shift << FINE)) << shift;
        return ((double)low + (double)((uint64_t)1 << shift) / 2) / 1000;
    }
    return (double)histogram->most / 1000;
}

static void histogram_print(const char *name, const struct histogram *histogram) {
    printf("\"%s\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f, \"count\": %llu}, ", name, histogram_at(histogram, .5),
           histogram_at(histogram, .9), histogram_at(histogram, .99), (double)histogram->most / 1000, (unsigned long long)histogram->count);
}

/* The request, and what a client reads of the answer. */

static void prepare_request(void) {
    char body[1024], *text;
    snprintf(body, sizeof body,
             "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
             "{\"role\":\"user\",\"content\":\"nonce-00000000: say what you were told.\"}],\"temperature\":0.7,\"max_tokens\":4096%s%s}",
             asked.model, script.stream ? ",\"stream\":true" : "", asked.usage ? ",\"stream_options\":{\"include_usage\":true}" : "");
    request_size = (size_t)asprintf(&text,
             "POST %s HTTP/1.1\r\nHost: %s:%d\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: application/json\r\n"
             "User-Agent: benchmark/1\r\n%sContent-Length: %zu\r\n\r\n%s", asked.path, asked.host, asked.port, asked.key, asked.headers, strlen(body), body);
    request = text;
    request_nonce = (size_t)(strstr(request, "nonce-") - request) + 6;
}

static void prepare_wanted(void) {
    wanted = malloc(expected.size + 1);
    wanted_nonce = calloc(expected.count, sizeof *wanted_nonce);
    for (uint32_t at = 0; at < expected.count; at++) {
        if (expected.events[at].nonce < 0) continue;
        const char *text = expected.bytes + expected.events[at].nonce - 1; /* the space before the nonce begins the content */
        size_t size = strcspn(text, "\"");
        wanted_nonce[wanted_nonces++] = wanted_size + 1;
        memcpy(wanted + wanted_size, text, size);
        wanted_size += size;
    }
}

/* One connection. */

static void ask(struct connection *here);

static void drop(struct connection *here) {
    if (here->open) {
        close(here->fd);
        open_now--;
    }
    here->open = here->asking = 0;
}

static void note(struct connection *here, uint64_t *counter, const char *text, ...) {
    va_list words;
    (*counter)++;
    if (!*mistake) {
        va_start(words, text);
        vsnprintf(mistake, sizeof mistake, text, words);
        va_end(words);
        for (char *at = mistake; *at; at++)
            if (*at == '"' || *at == '\\') *at = '\'';
            else if ((unsigned char)*at < 32 || (unsigned char)*at > 126) *at = ' ';
    }
    drop(here);
}

static int may_ask(void) {
    if (asked.hold || asked.requests) return begun < (asked.hold ? (uint64_t)asked.connections : asked.requests);
    return now < window_end;
}

static void dial(struct connection *here) {
    int on = 1;
    here->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (here->fd < 0 || (connect(here->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)) {
        perror("load: cannot connect");
        exit(1);
    }
    setsockopt(here->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event watched = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.ptr = here}};
    epoll_ctl(poller, EPOLL_CTL_ADD, here->fd, &watched);
    here->open = 1;
    open_now++;
}

static void write_out(struct connection *here) {
    if (!here->asking || here->sent == request_size) return;
    char nonce[NONCE];
    nonce_text(here->nonce, nonce);
    memcpy(request + request_nonce, nonce, NONCE);
    ssize_t done = send(here->fd, request + here->sent, request_size - here->sent, MSG_NOSIGNAL);
    if (done >= 0) here->sent += (size_t)done;
    else if (errno != EAGAIN && errno != ENOTCONN) note(here, &failed, "cannot send: %s", strerror(errno));
}

static void ask(struct connection *here) {
    if (!may_ask()) {
        drop(here);
        return;
    }
    begun++;
    now = clock_ns();
    here->nonce = (uint32_t)next_nonce++;
    here->started = now;
    if (!first_start) first_start = now;
    here->asking = here->in_head = 1;
    here->first_seen = here->last_answer = here->done_seen = here->line_size = 0;
    here->sent = here->kept_size = here->at = 0;
    here->event = 0;
    int leaves = asked.leave > 0 && (double)random() / RAND_MAX < asked.leave;
    here->impatient = leaves && asked.patience > 0;
    here->leave_at = leaves && !here->impatient ? 1 + (size_t)random() % expected.size : 0;
    if (!here->open) dial(here);
    write_out(here);
}

static void leave(struct connection *here) {
    struct linger hard = {1, 0};
    left_early++;
    if (random() & 1) setsockopt(here->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard); /* half of them with a reset */
    drop(here);
    ask(here);
}

static void complete(struct connection *here) {
    int whole = asked.content ? here->at == wanted_size && (here->done_seen || !script.stream) : here->at == expected.size;
    if (!whole) {
        note(here, &wrong, "the answer ended after %zu of %zu bytes", here->at, asked.content ? wanted_size : expected.size);
        ask(here);
        return;
    }
    exact++;
    last_end = now;
    if (here->started >= window_start) histogram_add(&latency, now - here->started);
    if (now >= window_start && (asked.requests || asked.hold || now < window_end)) in_window++;
    here->asking = 0;
    if (here->last_answer) drop(here);
    ask(here);
}

/* The body: each takes bytes of it and tells whether they are the expected ones. */

static void count_event(void) {
    events_all++;
    if (now >= window_start && (asked.requests || asked.hold || now < window_end)) events_in_window++;
}

static int body_exact(struct connection *here, const char *bytes, size_t size) {
    char nonce[NONCE];
    nonce_text(here->nonce, nonce);
    if (here->at + size > expected.size) return 0;
    while (size) {
        const struct event *event = &expected.events[here->event];
        size_t end = event->end, mark = event->nonce < 0 ? end : (size_t)event->nonce, part;
        if (here->at >= mark && here->at < mark + NONCE && mark < end) {
            size_t inside = here->at - mark;
            part = NONCE - inside < size ? NONCE - inside : size;
            if (memcmp(bytes, nonce + inside, part)) return 0;
        } else {
            size_t stop = here->at < mark ? mark : end;
            part = stop - here->at < size ? stop - here->at : size;
            if (memcmp(bytes, expected.bytes + here->at, part)) return 0;
        }
        bytes += part;
        size -= part;
        if ((here->at += part) < end) continue;
        here->event++;
        if (script.stream) count_event();
    }
    return 1;
}

static int content_is(struct connection *here, const char *text, size_t size) {
    char nonce[NONCE];
    nonce_text(here->nonce, nonce);
    for (; size; text++, size--, here->at++) {
        if (here->at >= wanted_size) return 0;
        while (here->event < wanted_nonces && here->at >= wanted_nonce[here->event] + NONCE) here->event++;
        int in_nonce = here->event < wanted_nonces && here->at >= wanted_nonce[here->event];
        if (*text != (in_nonce ? nonce[here->at - wanted_nonce[here->event]] : wanted[here->at])) return 0;
    }
    return 1;
}

/* The first string under "content" in one JSON object. */
static int take_content(struct connection *here, const char *json, size_t size) {
    const char *end = json + size, *at = memmem(json, size, "\"content\"", 9);
    if (!at) return 1;
    for (at += 9; at < end && (*at == ' ' || *at == ':'); at++) {}
    if (at == end || *at != '"') return 1; /* null */
    const char *close = memchr(at + 1, '"', (size_t)(end - at - 1));
    return close && content_is(here, at + 1, (size_t)(close - at - 1));
}

static void keep(struct connection *here, const char *bytes, size_t size) {
    if (here->kept_size + size > here->kept_room) here->kept = realloc(here->kept, here->kept_room = here->kept_size + size + 1024);
    memcpy(here->kept + here->kept_size, bytes, size);
    here->kept_size += size;
}

static int body_content(struct connection *here, const char *bytes, size_t size) {
    keep(here, bytes, size);
    char *start = here->kept, *end = here->kept + here->kept_size, *line;
    for (; script.stream && (line = memchr(start, '\n', (size_t)(end - start))); start = line + 1) {
        if (line - start < 6 || memcmp(start, "data:", 5)) continue;
        count_event();
        if (memmem(start, (size_t)(line - start), "[DONE]", 6)) here->done_seen = 1;
        else if (!take_content(here, start, (size_t)(line - start))) return 0;
    }
    here->kept_size = (size_t)(end - start);
    memmove(here->kept, start, here->kept_size);
    return 1;
}

static int body_ended(struct connection *here) {
    if (asked.content && !script.stream && !take_content(here, here->kept, here->kept_size)) return 0;
    complete(here);
    return 1;
}

static int body_part(struct connection *here, const char *bytes, size_t size) {
    if (!here->first_seen) {
        here->first_seen = 1;
        if (here->started >= window_start) histogram_add(&first_byte, now - here->started);
        if (++with_first == asked.connections && asked.hold) {
            printf("{\"open\": %d}\n", with_first);
            fflush(stdout);
        }
    }
    return asked.content ? body_content(here, bytes, size) : body_exact(here, bytes, size);
}

/* The head. Takes what belongs to it; tells how many bytes, or -1 where the answer is not a 200. */
static ssize_t take_head(struct connection *here, const char *bytes, size_t size) {
    size_t before = here->kept_size;
    keep(here, bytes, size);
    keep(here, "", 1);
    char *end = strstr(here->kept, "\r\n\r\n");
    here->kept_size--;
    if (!end) return here->kept_size > HEAD_MAX ? -1 : (ssize_t)size;
    if (strncmp(here->kept, "HTTP/1.", 7) || strncmp(here->kept + 8, " 200", 4)) return -1;
    size_t used = (size_t)(end - here->kept) + 4 - before;
    *end = 0;
    const char *length = strcasestr(here->kept, "\r\ncontent-length:"), *coding = strcasestr(here->kept, "\r\ntransfer-encoding:");
    here->last_answer = strcasestr(here->kept, "\r\nconnection: close") != NULL;
    here->framing = coding ? SIZE_LINE : length ? COUNTED : TO_END;
    here->left = length ? strtoull(length + 17, NULL, 10) : 0;
    here->in_head = 0;
    here->kept_size = 0;
    return (ssize_t)used;
}

/* A line of the chunked framing; 1 when it is whole, with its end cut off. */
static int take_line(struct connection *here, const char **bytes, size_t *size) {
    while (*size) {
        char byte = *(*bytes)++;
        --*size;
        if (byte == '\n') {
            here->line[here->line_size] = 0;
            here->line_size = 0;
            return 1;
        }
        if (byte != '\r' && here->line_size < (int)sizeof here->line - 1) here->line[here->line_size++] = byte;
    }
    return 0;
}

/* Whether all is as expected so far. */
static int take_body(struct connection *here, const char *bytes, size_t size) {
    uint32_t nonce = here->nonce;
    while (here->asking && here->nonce == nonce) {
        if (here->framing == COUNTED && !here->left) return !size && body_ended(here);
        if (!size) return 1;
        if (here->framing == SIZE_LINE || here->framing == CHUNK_END || here->framing == TRAILER) {
            if (!take_line(here, &bytes, &size)) return 1;
            if (here->framing == TRAILER) {
                if (!*here->line) return !size && body_ended(here);
            } else if (here->framing == CHUNK_END) here->framing = SIZE_LINE;
            else {
                here->left = strtoull(here->line, NULL, 16);
                here->framing = here->left ? CHUNK : TRAILER;
            }
            continue;
        }
        size_t part = here->framing == TO_END || here->left > size ? size : here->left;
        if (!body_part(here, bytes, part)) return 0;
        bytes += part;
        size -= part;
        if (here->framing != TO_END) here->left -= part;
        if (here->framing == CHUNK && !here->left) here->framing = CHUNK_END;
    }
    return 1;
}

static void read_in(struct connection *here, int ending) {
    while (here->open) {
        ssize_t got = recv(here->fd, inbox, sizeof inbox, 0);
        if (got < 0 && errno == EAGAIN) return;
        now = clock_ns();
        if (got <= 0) {
            if (!here->asking) drop(here);
            else if (got == 0 && !here->in_head && here->framing == TO_END) {
                here->last_answer = 1;
                if (!body_ended(here)) note(here, &wrong, "wrong content");
            } else note(here, &failed, "the connection ended: %s, after %zu bytes of the body", got ? strerror(errno) : "closed", here->at);
            if (!here->open) ask(here);
            return;
        }
        if (!here->asking) {
            note(here, &wrong, "bytes that nobody asked for: %.*s", (int)(got < 80 ? got : 80), inbox);
            ask(here);
            return;
        }
        ssize_t used = here->in_head ? take_head(here, inbox, (size_t)got) : 0;
        if (used < 0) note(here, &wrong, "not a 200: %.*s", (int)(got < 300 ? got : 300), inbox);
        else if (!here->in_head && !take_body(here, inbox + used, (size_t)(got - used))) note(here, &wrong, "wrong byte at about %zu of the body", here->at);
        else if (here->leave_at && here->asking && here->at >= here->leave_at) leave(here);
        if (!here->open) {
            if (!here->asking) ask(here);
            return;
        }
        if ((size_t)got < sizeof inbox && !ending) return;
    }
}

/* The run. */

static void sweep(void) {
    for (int at = 0; at < asked.connections; at++) {
        struct connection *here = &connections[at];
        if (!here->asking || now - here->started < (uint64_t)(asked.timeout * (double)SECOND)) continue;
        note(here, &failed, "no end within %.0f s", asked.timeout);
        ask(here);
    }
}

static void lose_patience(void) {
    for (int at = 0; at < asked.connections; at++) {
        struct connection *here = &connections[at];
        if (here->asking && here->impatient && !here->first_seen && now - here->started > (uint64_t)(asked.patience * (double)SECOND)) leave(here);
    }
}

static void report(void) {
    double span = asked.requests || asked.hold ? (double)(last_end - first_start) / SECOND : asked.seconds;
    if (span <= 0) span = 1e-9;
    printf("{\"requests\": %llu, \"exact\": %llu, \"wrong\": %llu, \"failed\": %llu, \"left\": %llu, \"seconds\": %.3f, ",
           (unsigned long long)begun, (unsigned long long)exact, (unsigned long long)wrong, (unsigned long long)failed, (unsigned long long)left_early, span);
    printf("\"requests_per_s\": %.1f, \"chunks\": %llu, \"chunks_per_s\": %.1f, ", (double)in_window / span, (unsigned long long)events_all,
           (double)events_in_window / span);
    histogram_print("latency_us", &latency);
    histogram_print("first_us", &first_byte);
    printf("\"mistake\": \"%s\"}\n", mistake);
}

static void run(void) {
    struct epoll_event events[512];
    int started = 0;
    uint64_t swept = now = clock_ns(), begin = now;
    window_start = asked.requests || asked.hold ? 0 : begin + (uint64_t)(asked.warmup * (double)SECOND);
    window_end = begin + (uint64_t)((asked.warmup + asked.seconds) * (double)SECOND);
    for (;;) {
        int due = asked.connections;
        if (asked.hold && (double)(now - begin) * asked.rate / SECOND < asked.connections) due = (int)((double)(now - begin) * asked.rate / SECOND) + 1;
        while (started < due && started < asked.connections) ask(&connections[started++]);
        if (started == asked.connections && !open_now && !may_ask()) return;
        int count = epoll_wait(poller, events, 512, started < asked.connections || asked.patience > 0 ? 1 : 100);
        now = clock_ns();
        for (int at = 0; at < count; at++) {
            struct connection *here = events[at].data.ptr;
            int ending = (events[at].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
            if (events[at].events & EPOLLOUT) write_out(here);
            if (ending || events[at].events & EPOLLIN) read_in(here, ending);
        }
        if (asked.patience > 0) lose_patience();
        if (now - swept > SECOND) {
            swept = now;
            sweep();
        }
        if (wrong + failed > 1000 && wrong + failed > exact) return; /* it will not get better */
    }
}

static void usage(void) {
    fprintf(stderr, "usage: load --port N [--host A] [--path P] [--key K] [--header 'Name: value']... [--model SCRIPT] [--usage] [--content]\n"
                    "            [--connections N] [--seconds S] [--warmup S] [--requests N] [--hold] [--rate N] [--leave SHARE [--patience S]] [--timeout S] [--seed N]\n");
    exit(2);
}

static void parse(int count, char **words) {
    static const struct option options[] = {
        {"port", 1, 0, 'p'}, {"host", 1, 0, 'H'}, {"path", 1, 0, 'P'}, {"key", 1, 0, 'k'}, {"header", 1, 0, 'h'}, {"model", 1, 0, 'm'},
        {"usage", 0, 0, 'u'}, {"content", 0, 0, 'c'}, {"connections", 1, 0, 'n'}, {"seconds", 1, 0, 's'}, {"warmup", 1, 0, 'w'},
        {"requests", 1, 0, 'r'}, {"hold", 0, 0, 'o'}, {"rate", 1, 0, 'R'}, {"leave", 1, 0, 'l'}, {"patience", 1, 0, 'i'}, {"timeout", 1, 0, 't'}, {"seed", 1, 0, 'S'}, {0}};
    for (int option; (option = getopt_long(count, words, "", options, NULL)) != -1;) switch (option) {
        case 'p': asked.port = atoi(optarg); break;
        case 'H': asked.host = optarg; break;
        case 'P': asked.path = optarg; break;
        case 'k': asked.key = optarg; break;
        case 'h':
            if (strlen(asked.headers) + strlen(optarg) + 3 > sizeof asked.headers) usage();
            strcat(strcat(asked.headers, optarg), "\r\n");
            break;
        case 'm': asked.model = optarg; break;
        case 'u': asked.usage = 1; break;
        case 'c': asked.content = 1; break;
        case 'n': asked.connections = atoi(optarg); break;
        case 's': asked.seconds = atof(optarg); break;
        case 'w': asked.warmup = atof(optarg); break;
        case 'r': asked.requests = strtoull(optarg, NULL, 10); break;
        case 'o': asked.hold = 1; break;
        case 'R': asked.rate = atof(optarg); break;
        case 'l': asked.leave = atof(optarg); break;
        case 'i': asked.patience = atof(optarg); break;
        case 't': asked.timeout = atof(optarg); break;
        case 'S': asked.seed = (unsigned)atoi(optarg); break;
        default: usage();
    }
    if (optind != count || asked.port <= 0 || asked.connections <= 0 || strlen(asked.model) >= MODEL_MAX || !script_parse(asked.model, &script)) usage();
}

int main(int count, char **words) {
    struct rlimit files;
    parse(count, words);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    srandom(asked.seed);
    next_nonce = (uint64_t)asked.seed << 24;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)asked.port)};
    if (inet_pton(AF_INET, asked.host, &address.sin_addr) != 1) usage();
    expected = body_of(asked.model, &script, asked.usage);
    prepare_wanted();
    prepare_request();
    connections = calloc((size_t)asked.connections, sizeof *connections);
    poller = epoll_create1(EPOLL_CLOEXEC);
    run();
    report();
    return wrong || failed ? 3 : 0;
}
