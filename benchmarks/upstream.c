/* A fake OpenAI-like upstream: one thread, HTTP/1.1 with keep-alive, as fast as the kernel's sockets. script.h says what it answers.
 *
 *   upstream [--port N]     prints {"port": N} once it listens
 * GET /stats tells what is open; GET of any other path is an empty list of models. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "script.h"

#define BLOCK (64 << 10)        /* bytes a send at most */
#define REQUEST_MAX (64 << 20)

/* A whole HTTP answer, ready but for the nonce: head, and the body as it is framed. A step is what one chunk adds. */
struct answer {
    char model[MODEL_MAX];
    int usage;
    struct script script;
    char *wire;
    size_t size;
    struct event *steps;
    uint32_t count;
    struct answer *next;
};

struct connection {
    int fd;
    char *inbox;
    size_t length, room;
    const struct answer *answer; /* NULL: nothing is being answered */
    size_t sent, allowed;        /* bytes of the answer: written, and due by now */
    uint32_t step;               /* the next one that falls due */
    uint32_t patch;              /* the first one that is not written whole */
    uint64_t started, due;       /* monotonic ns */
    int32_t heap_at;             /* -1: not waiting */
    int ready, writable, closing;
    char nonce[NONCE];
    struct connection *next_ready;
};

static int poller, listener;
static struct answer *answers;
static struct connection **heap;
static int heap_count, heap_room;
static struct connection *ready_first, *ready_last;
static uint64_t opened, closed, begun, finished, broken;
static char block[BLOCK + 64];

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

/* The heap of paced answers, by the time at which the next step is due. */

static void heap_put(int at, struct connection *item) {
    heap[at] = item;
    item->heap_at = at;
}

static void heap_rise(int at, struct connection *item) {
    for (; at && heap[(at - 1) / 2]->due > item->due; at = (at - 1) / 2) heap_put(at, heap[(at - 1) / 2]);
    heap_put(at, item);
}

static void heap_sink(int at, struct connection *item) {
    for (int child; (child = 2 * at + 1) < heap_count; at = child) {
        if (child + 1 < heap_count && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= item->due) break;
        heap_put(at, heap[child]);
    }
    heap_put(at, item);
}

static void heap_add(struct connection *item, uint64_t due) {
    if (heap_count == heap_room) heap = realloc(heap, (size_t)(heap_room = heap_room ? 2 * heap_room : 1024) * sizeof *heap);
    item->due = due;
    heap_rise(heap_count++, item);
}

static void heap_remove(struct connection *item) {
    int at = item->heap_at;
    if (at < 0) return;
    item->heap_at = -1;
    struct connection *last = heap[--heap_count];
    if (last == item) return;
    if (at && heap[(at - 1) / 2]->due > last->due) heap_rise(at, last);
    else heap_sink(at, last);
}

/* Answers, made once for each model and kept. */

static void wire_add(struct answer *answer, const char *text, size_t size) {
    answer->wire = realloc(answer->wire, answer->size + size);
    memcpy(answer->wire + answer->size, text, size);
    answer->size += size;
}

static void answer_head(struct answer *answer, size_t size) {
    char head[1024], framing[64];
    snprintf(framing, sizeof framing, answer->script.stream ? "Transfer-Encoding: chunked" : "Content-Length: %zu", size);
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\nDate: Wed, 01 Jan 2025 00:00:00 GMT\r\nContent-Type: %s\r\n%s\r\nConnection: keep-alive\r\n"
             "openai-version: 2020-10-01\r\nopenai-processing-ms: 12\r\nx-request-id: req_4f2a9c0e7b1d4c8e9a6f3b2d1c0e5f7a\r\n\r\n",
             answer->script.stream ? "text/event-stream; charset=utf-8" : "application/json", framing);
    wire_add(answer, head, strlen(head));
}

static struct answer *answer_make(const char *model, int usage, const struct script *script) {
    struct answer *made = calloc(1, sizeof *made);
    struct body body = body_of(model, script, usage);
    snprintf(made->model, sizeof made->model, "%s", model);
    made->usage = usage;
    made->script = *script;
    made->steps = calloc(body.count, sizeof *made->steps);
    answer_head(made, body.size);
    uint32_t start = 0;
    for (uint32_t at = 0; at < body.count; start = body.events[at++].end) {
        char framing[32];
        uint32_t size = body.events[at].end - start;
        if (script->stream) wire_add(made, framing, (size_t)snprintf(framing, sizeof framing, "%x\r\n", size));
        made->steps[at].nonce = body.events[at].nonce < 0 ? -1 : (int32_t)made->size + body.events[at].nonce - (int32_t)start;
        wire_add(made, body.bytes + start, size);
        if (script->stream) wire_add(made, "\r\n", 2);
        if (script->stream && at + 1 == body.count) wire_add(made, "0\r\n\r\n", 5);
        made->steps[at].end = (uint32_t)made->size;
    }
    made->count = body.count;
    free(body.bytes);
    free(body.events);
    made->next = answers;
    return answers = made;
}

static const struct answer *answer_of(const char *model, int usage) {
    struct script script;
    for (const struct answer *known = answers; known; known = known->next)
        if (known->usage == usage && !strcmp(known->model, model)) return known;
    return script_parse(model, &script) ? answer_make(model, usage, &script) : NULL;
}

/* Writing. */

static void set_ready(struct connection *here) {
    if (here->ready) return;
    here->ready = 1;
    here->next_ready = NULL;
    if (ready_last) ready_last->next_ready = here;
    else ready_first = here;
    ready_last = here;
}

/* The end of what the next send may carry: `burst` steps, but no more than is due or fits a block. */
static size_t reach(const struct connection *here) {
    const struct answer *answer = here->answer;
    uint32_t last = here->patch + answer->script.burst - 1;
    size_t end = answer->steps[last < answer->count ? last : answer->count - 1].end;
    if (end > here->allowed) end = here->allowed;
    return end > here->sent + BLOCK ? here->sent + BLOCK : end;
}

/* Copies wire[from..to) with the nonces in place; where an end cuts a nonce, the part that is inside. */
static void render(const struct connection *here, size_t from, size_t to) {
    const struct answer *answer = here->answer;
    memcpy(block, answer->wire + from, to - from);
    for (uint32_t step = here->patch; step < answer->count; step++) {
        int64_t at = answer->steps[step].nonce;
        if (at >= (int64_t)to) break;
        for (int digit = 0; at >= 0 && digit < NONCE; digit++)
            if (at + digit >= (int64_t)from && at + digit < (int64_t)to) block[at + digit - (int64_t)from] = here->nonce[digit];
    }
}

static void shut(struct connection *here) {
    if (here->answer) broken++;
    heap_remove(here);
    close(here->fd);
    closed++;
    here->fd = -1;
    here->answer = NULL;
    free(here->inbox);
    here->inbox = NULL;
    if (!here->ready) free(here); /* else the loop that takes it from the queue does */
}

/* One send. Another one waits for its turn, for room in the socket, or for its time. */
static void push(struct connection *here) {
    while (here->answer && here->sent < here->allowed) {
        if (!here->writable) return;
        size_t end = reach(here), size = end - here->sent;
        render(here, here->sent, end);
        ssize_t done = send(here->fd, block, size, MSG_NOSIGNAL);
        if (done < 0) {
            here->writable = 0;
            if (errno != EAGAIN) here->closing = 1;
            return;
        }
        here->sent += (size_t)done;
        while (here->patch < here->answer->count && here->answer->steps[here->patch].end <= here->sent) here->patch++;
        if (here->sent == here->answer->size) {
            finished++;
            here->answer = NULL;
        } else if (here->sent < here->allowed && !here->answer->script.pace_ms) {
            set_ready(here); /* the others first */
            return;
        }
    }
}

/* When a step is due. The tail (finish reason, usage, [DONE]) comes with the chunk after the last. */
static uint64_t due_at(const struct connection *here, uint32_t step) {
    const struct script *script = &here->answer->script;
    uint32_t beat = script->stream ? (step <= script->count ? step : script->count + 1) : 1;
    return here->started + (uint64_t)beat * script->pace_ms * 1000000u;
}

static void advance(struct connection *here, uint64_t now) {
    const struct answer *answer = here->answer;
    while (here->step < answer->count && due_at(here, here->step) <= now) here->allowed = answer->steps[here->step++].end;
    if (here->step < answer->count) heap_add(here, due_at(here, here->step));
    push(here);
}

static void answer_start(struct connection *here, const struct answer *answer) {
    here->answer = answer;
    here->sent = here->allowed = 0;
    here->step = here->patch = 0;
    begun++;
    if (!answer->script.pace_ms) {
        here->step = answer->count;
        here->allowed = answer->size;
        push(here);
        return;
    }
    here->started = now_ns();
    advance(here, here->started);
}

/* Reading. */

static void reply_text(struct connection *here, const char *status, const char *text) {
    char reply[1024];
    int size = snprintf(reply, sizeof reply, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(text), text);
    if (send(here->fd, reply, (size_t)size, MSG_NOSIGNAL) != size) here->closing = 1;
}

static void reply_stats(struct connection *here) {
    char text[512];
    snprintf(text, sizeof text, "{\"connections\": %llu, \"answering\": %llu, \"begun\": %llu, \"finished\": %llu, \"broken\": %llu}",
             (unsigned long long)(opened - closed), (unsigned long long)(begun - finished - broken), (unsigned long long)begun,
             (unsigned long long)finished, (unsigned long long)broken);
    reply_text(here, "200 OK", text);
}

/* What follows `"name":` in JSON that some gateway may have spaced, or NULL. */
static const char *member(const char *text, size_t size, const char *name) {
    const char *at = memmem(text, size, name, strlen(name)), *end = text + size;
    if (!at) return NULL;
    for (at += strlen(name); at < end && (*at == ' ' || *at == ':'); at++) {}
    return at < end ? at : NULL;
}

static void reply_chat(struct connection *here, const char *body, size_t size) {
    char model[MODEL_MAX] = "";
    const char *at = member(body, size, "\"model\""), *usage = member(body, size, "\"include_usage\""), *nonce = memmem(body, size, "nonce-", 6);
    for (size_t length = 0; at && ++at < body + size && *at != '"' && length < MODEL_MAX - 1; length++) model[length] = *at;
    const struct answer *answer = answer_of(model, usage && body + size - usage > 4 && !memcmp(usage, "true", 4));
    if (!answer) {
        reply_text(here, "404 Not Found", "{\"error\":{\"message\":\"no such script\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"model_not_found\"}}");
        return;
    }
    memset(here->nonce, '0', NONCE);
    if (nonce && body + size - nonce >= 6 + NONCE) memcpy(here->nonce, nonce + 6, NONCE);
    answer_start(here, answer);
}

/* The size of a chunked body in `text` as it lies there, 0 while it is not complete; joins its pieces at the front. */
static size_t dechunk(char *text, size_t size, size_t *joined) {
    size_t at = 0;
    *joined = 0;
    for (;;) {
        char *line = memmem(text + at, size - at, "\r\n", 2);
        if (!line) return 0;
        size_t length = strtoul(text + at, NULL, 16), start = (size_t)(line - text) + 2;
        if (start + length + 2 > size) return 0;
        if (!length) return start + 2;
        at = start + length + 2;
        memmove(text + *joined, text + start, length); /* repeated from the start when more arrived: only complete bodies are joined for good */
        *joined += length;
    }
}

/* Takes one request from the inbox and begins its answer; 0 while there is none whole. */
static int take_request(struct connection *here) {
    char *end = memmem(here->inbox, here->length, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = (size_t)(end - here->inbox) + 4, rest = here->length - head, size = 0, used = 0;
    *end = 0;
    const char *length = strcasestr(here->inbox, "\r\ncontent-length:"), *coding = strcasestr(here->inbox, "\r\ntransfer-encoding:");
    *end = '\r';
    if (coding) {
        char *copy = malloc(rest + 1);
        memcpy(copy, here->inbox + head, rest);
        used = dechunk(copy, rest, &size);
        if (used) memcpy(here->inbox + head, copy, size);
        free(copy);
        if (!used) return 0;
    } else {
        size = used = length ? strtoul(length + 17, NULL, 10) : 0;
        if (rest < size) return 0;
    }
    if (!memcmp(here->inbox, "POST ", 5)) reply_chat(here, here->inbox + head, size);
    else if (!memcmp(here->inbox, "GET /stats", 10)) reply_stats(here);
    else reply_text(here, "200 OK", "{\"object\":\"list\",\"data\":[]}");
    here->length -= head + used;
    memmove(here->inbox, here->inbox + head + used, here->length);
    return 1;
}

/* Goes on with the answer, then with the requests that wait behind it. */
static void serve(struct connection *here) {
    push(here);
    while (!here->answer && !here->closing && here->length && take_request(here)) {}
    if (here->closing) shut(here);
}

/* All that has arrived; `ending` where the end of the connection has. */
static void read_in(struct connection *here, int ending) {
    for (;;) {
        if (here->room - here->length < 1024) here->inbox = realloc(here->inbox, here->room = here->room ? 2 * here->room : 2048);
        size_t space = here->room - here->length;
        ssize_t got = recv(here->fd, here->inbox + here->length, space, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN) || here->length > REQUEST_MAX) here->closing = 1;
        if (got <= 0) return;
        here->length += (size_t)got;
        if ((size_t)got < space && !ending) return;
    }
}

static void accept_all(void) {
    for (int fd, on = 1; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; opened++) {
        struct connection *here = calloc(1, sizeof *here);
        *here = (struct connection){.fd = fd, .heap_at = -1, .writable = 1};
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event wanted = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.ptr = here}};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted);
    }
}

static void run_ready(void) {
    struct connection *here = ready_first, *next;
    ready_first = ready_last = NULL;
    for (; here; here = next) {
        next = here->next_ready;
        here->ready = 0;
        if (here->fd < 0) {
            free(here);
            continue;
        }
        serve(here);
    }
}

static void run_due(void) {
    for (uint64_t now = now_ns(); heap_count && heap[0]->due <= now;) {
        struct connection *here = heap[0];
        heap_remove(here);
        advance(here, now);
        serve(here);
    }
}

static void wait_for(struct epoll_event *events, int room) {
    struct timespec timeout = {0, 0}, *limit = &timeout;
    if (!ready_first && !heap_count) limit = NULL;
    else if (!ready_first) {
        uint64_t now = now_ns(), left = heap[0]->due > now ? heap[0]->due - now : 0;
        timeout = (struct timespec){(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
    }
    int count = epoll_pwait2(poller, events, room, limit, NULL);
    for (int at = 0; at < count; at++) {
        struct connection *here = events[at].data.ptr;
        if (!here) {
            accept_all();
            continue;
        }
        if (events[at].events & EPOLLOUT) here->writable = 1;
        int ending = (events[at].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
        if (ending || events[at].events & EPOLLIN) read_in(here, ending);
        if (here->closing) shut(here);
        else if (!here->ready) serve(here);
    }
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct rlimit files;
    int on = 1;
    if (count == 3 && !strcmp(words[1], "--port")) address.sin_port = htons((uint16_t)atoi(words[2]));
    else if (count != 1) return fprintf(stderr, "usage: upstream [--port N]\n"), 2;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) return perror("upstream"), 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event wanted = {EPOLLIN, {.ptr = NULL}}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wanted);
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        wait_for(events, 512);
        run_due();
        run_ready();
    }
}
